"""The connection's outbox: nothing lost, nothing out of order, bounded in bytes, and nothing sent once closed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.connection.connection import Connection
from snorky.gateway.errors import CloseCode, InvalidMessage, ReplyTooLarge
from snorky.gateway.protocol.codec import MAX_VALUES
from tests.support.fakes.fake_wire import JSON, FakeTransport

MAX_BYTES = 100


def make(wire: FakeTransport | None = None) -> tuple[Connection, FakeTransport]:
    wire = wire or FakeTransport()
    return Connection(wire, JSON, node_id="n", serial=7, outbox_max_bytes=MAX_BYTES), wire


class PausingWire(FakeTransport):
    """Asks for a pause as soon as it has `capacity` bytes, as a transport does from within `write`."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.connection: Connection | None = None

    def write(self, data: bytes) -> None:
        assert self.buffered <= self.capacity, "written to although it had asked for a pause"
        super().write(data)
        self.buffered += len(data)
        if self.buffered > self.capacity:
            assert self.connection is not None
            self.connection.pause()

    def drain(self) -> None:
        assert self.connection is not None
        self.buffered = 0
        self.connection.resume()


def test_write_is_the_wires_own_while_it_takes_bytes() -> None:
    """One call per connection of a pass, and no more: the hot path."""
    connection, wire = make()
    assert connection.write == wire.write


class DirectWire(FakeTransport):
    """Says that the fan-out may write to its socket."""

    direct = object()

    def make_direct(self) -> object:
        return self.direct


@pytest.mark.parametrize("end", ["close", "mark_closed"])
def test_only_an_open_connection_that_does_not_queue_may_be_written_to_directly(end: str) -> None:
    wire = DirectWire()
    connection, _ = make(wire)
    assert connection.direct is None, "it costs memory, and most connections receive nothing"
    assert connection.open_direct()
    assert connection.direct is wire.direct
    connection.pause()
    assert connection.direct is None
    assert not connection.open_direct()
    connection.resume()
    assert connection.open_direct()
    assert connection.direct is wire.direct
    if end == "close":
        connection.close(CloseCode.GOING_AWAY)
    else:
        connection.mark_closed()
    assert connection.direct is None
    connection.pause()
    connection.resume()
    assert not connection.open_direct()
    assert connection.direct is None


def test_a_wire_without_a_socket_of_its_own_is_always_asked() -> None:
    connection, _ = make()
    assert not connection.open_direct()
    connection.pause()
    connection.resume()
    assert not connection.open_direct()
    assert connection.direct is None


def test_buffered_frames_are_written_at_once_and_in_order() -> None:
    connection, wire = make()
    connection.write(b"1")
    connection.pause()
    for data in (b"2", b"3", b"4"):
        connection.write(data)
    assert wire.writes == [b"1"]
    connection.resume()
    connection.write(b"5")
    assert wire.writes == [b"1", b"234", b"5"]


def test_resume_without_buffered_frames_writes_nothing() -> None:
    connection, wire = make()
    connection.pause()
    connection.resume()
    assert wire.writes == []
    assert connection.write == wire.write


def test_buffered_frames_are_references_and_no_copies() -> None:
    connection, _ = make()
    connection.pause()
    frame = b"x" * 20
    connection.write(frame)
    assert connection._outbox is not None
    assert connection._outbox[0] is frame


def test_slow_consumer_is_closed_past_the_bound_and_its_memory_returned() -> None:
    connection, wire = make()
    connection.pause()
    connection.write(b"x" * MAX_BYTES)
    assert not connection.is_closed
    connection.write(b"y")
    assert connection.is_closed
    assert wire.closes == [(CloseCode.SLOW_CONSUMER, "Slow consumer")]
    assert wire.writes == []
    assert connection._outbox is None
    connection.write(b"z")
    assert connection._outbox is None
    assert len(wire.closes) == 1


def test_bytes_in_the_wires_own_buffer_count() -> None:
    connection, wire = make()
    wire.buffered = 60
    connection.pause()
    connection.write(b"x" * 40)
    assert not connection.is_closed
    connection.write(b"x")
    assert connection.is_closed


def test_bound_is_reset_after_the_wire_drained() -> None:
    connection, _ = make()
    for _ in range(10):
        connection.pause()
        connection.write(b"x" * MAX_BYTES)
        connection.resume()
    assert not connection.is_closed


@given(
    capacity=st.integers(0, 20),
    steps=st.lists(st.integers(1, 30).map(lambda size: bytes([size]) * size) | st.just(b""), max_size=40),
)
def test_nothing_is_lost_or_out_of_order_and_never_more_than_the_bound_is_kept(
    capacity: int, steps: list[bytes]
) -> None:
    """An empty step is the wire draining."""
    wire = PausingWire(capacity)
    connection, _ = make(wire)
    wire.connection = connection
    sent = b""
    for step in steps:
        if not step:
            wire.drain()
        elif not connection.is_closed:
            sent += step
            connection.write(step)
        kept = sum(map(len, connection._outbox or ()))
        assert kept + (wire.buffered if kept else 0) <= MAX_BYTES
    received = b"".join(wire.writes)
    if connection.is_closed:
        assert sent.startswith(received)
    else:
        for _ in range(len(steps)):
            wire.drain()
        assert b"".join(wire.writes) == sent


@pytest.mark.parametrize("is_peers_doing", [False, True])
def test_closed_connection_takes_nothing_and_cannot_be_revived(is_peers_doing: bool) -> None:
    connection, wire = make()
    connection.pause()
    connection.write(b"held")
    if is_peers_doing:
        connection.mark_closed()
    else:
        connection.close(1000, "bye")
    connection.pause()
    connection.write(b"late")
    connection.resume()
    connection.write(b"later")
    connection.send({"service": "a", "message": 1})
    connection.close(1001)
    assert wire.writes == []
    assert wire.closes == ([] if is_peers_doing else [(1000, "bye")])
    assert connection.is_closed
    assert connection._outbox is None


def test_send_encodes_and_frames_or_raises_and_writes_nothing() -> None:
    connection, wire = make()
    connection.send({"service": "a", "message": None})
    assert wire.writes == [b'{"service":"a","message":null}\n']
    with pytest.raises(InvalidMessage):
        connection.send({"service": "a", "message": object()})
    assert len(wire.writes) == 1


def test_a_reply_may_have_more_values_than_a_message_of_a_client() -> None:
    wire = FakeTransport()
    connection = Connection(wire, JSON, node_id="n", serial=7)
    members = list(range(3 * MAX_VALUES))
    connection.send({"service": "chat", "message": {"type": "response", "data": members}})
    assert json.loads(wire.writes[0])["message"]["data"] == members


def test_data_of_services_is_each_connections_own_and_costs_nothing_unused() -> None:
    one, other = make()[0], make()[0]
    assert one._data is None
    one.data["a"] = 1
    assert one.data == {"a": 1}
    assert other.data == {}
    assert one.id == "n.7"


def test_a_reply_counts_before_it_is_written() -> None:
    connection, wire = make()
    wire.buffered = 60
    connection.write_reply(b"x" * 40)
    assert wire.writes == [b"x" * 40]
    connection.write_reply(b"y" * 41)
    assert wire.writes == [b"x" * 40]
    assert wire.closes == [(CloseCode.SLOW_CONSUMER, "Slow consumer")]


def test_a_reply_that_could_never_wait_is_refused_and_the_connection_stays() -> None:
    connection, wire = make()
    with pytest.raises(ReplyTooLarge, match="larger than 100 bytes"):
        connection.send({"service": "a", "message": "x" * 100})
    with pytest.raises(ReplyTooLarge):
        connection.write_reply(b"x" * 101)
    assert (wire.writes, wire.closes, connection.is_closed) == ([], [], False)
