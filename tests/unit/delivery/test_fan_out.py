"""The fan-out: in order, once, isolated from invalid payloads and broken wires; nothing after an unsubscribe."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import msgpack  # type: ignore[import-untyped]  # ships no annotations
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from snorky.gateway import Metrics
from snorky.gateway.connection.connection import Connection
from snorky.gateway.delivery.channel_order import Gap, Late, Step
from snorky.gateway.delivery.fan_out import Fanout
from snorky.gateway.delivery.hub import Hub
from snorky.gateway.protocol.codec import Encoding, Json, decode_json, encode_msgpack
from snorky.gateway.protocol.publication import MARK, Position, Publication, Selector, write_addressed
from snorky.gateway.protocol.splicing import PAYLOAD, Template
from snorky.gateway.protocol.ws_frames import BINARY, TEXT, Dialect
from tests.support.fakes.fake_wire import JSON, MSGPACK, FakeWire, settle

KEY, OTHER = "s:a", "s:b"


class Source:
    """Records its calls; a test that pauses twice, or resumes without a pause, is wrong."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")


class Rig:
    """A fan-out with a hub and subscribers that record what they get."""

    def __init__(self, chunk: int = 1000) -> None:
        self.hub = Hub()
        self.source = Source()
        self.metrics = Metrics()
        self.fanout = Fanout(self.hub, self.source, self.metrics, chunk=chunk, payload_max_bytes=100_000)
        self.wires: dict[Connection, FakeWire] = {}

    def subscriber(self, key: str = KEY, dialect: Dialect = JSON) -> Connection:
        wire = FakeWire()
        connection = Connection(wire, dialect, node_id="n", serial=len(self.wires))
        self.wires[connection] = wire
        self.add(connection, key)
        return connection

    def add(self, connection: Connection, key: str = KEY) -> None:
        self.hub.add(connection, key, Template("s", {"in": key, "is": PAYLOAD}))

    def got(self, connection: Connection, key: str = KEY) -> list[object]:
        """Payloads that a JSON client received in a channel."""
        lines = [decode_json(line) for line in b"".join(self.wires[connection].writes).splitlines()]
        messages = [line["message"] for line in lines if isinstance(line, dict)]
        return [message["is"] for message in messages if message["in"] == key]

    def drops(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("snorky_drops_total", {"reason": reason}) or 0.0

    def sample(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0


def numbers(*values: int, key: str = KEY) -> Mapping[str, Sequence[bytes]]:
    return {key: [b"%d" % value for value in values]}


# -- once per dialect -------------------------------------------------------------------------------------------


def test_message_is_framed_once_per_dialect_however_many_clients() -> None:
    framed: list[str] = []

    def counting(name: str, encoding: Encoding) -> Dialect:
        def frame(message: bytes) -> bytes:
            framed.append(name)
            return message + b"\n"

        return Dialect(name, encoding, TEXT, frame)

    plain, packed = counting("plain", Encoding.JSON), counting("packed", Encoding.JSON)
    msgpack = counting("msgpack", Encoding.MSGPACK)
    rig = Rig()
    for dialect in (plain, packed, msgpack):
        for _ in range(10):
            rig.subscriber(dialect=dialect)
    rig.fanout.deliver(numbers(1, 2))
    assert sorted(framed) == sorted(["plain", "packed", "msgpack"] * 2)


def test_message_is_encoded_once_per_encoding_however_many_dialects(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[object] = []

    def counting(value: Json) -> bytes:
        encoded.append(value)
        return encode_msgpack(value)

    monkeypatch.setattr("snorky.gateway.delivery.batches.encode_msgpack", counting)
    rig = Rig()
    for name in ("one", "other"):
        rig.subscriber(dialect=Dialect(name, Encoding.MSGPACK, BINARY, lambda message: message))
    rig.fanout.deliver(numbers(1, 2))
    assert encoded == [1, 2]
    assert len({wire.writes[0] for wire in rig.wires.values()}) == 1


def test_all_clients_of_a_dialect_share_the_same_bytes_object() -> None:
    rig = Rig()
    for _ in range(3):
        rig.subscriber()
    rig.fanout.deliver(numbers(1, 2, 3))
    written = [wire.writes for wire in rig.wires.values()]
    assert [len(writes) for writes in written] == [1, 1, 1], "messages of one read are one write"
    assert len({id(writes[0]) for writes in written}) == 1


def test_dialects_get_the_same_in_their_own_encoding() -> None:
    rig = Rig()
    text, binary = rig.subscriber(), rig.subscriber(dialect=MSGPACK)
    rig.fanout.deliver({KEY: [b'{"x": 1.5}', b"[null]"]})
    assert rig.got(text) == [{"x": 1.5}, [None]]
    assert rig.wires[binary].writes == [
        b"\x82\xa7service\xa1s\xa7message\x82\xa2in\xa3s:a\xa2is\x81\xa1x\xcb\x3f\xf8\0\0\0\0\0\0"
        b"\x82\xa7service\xa1s\xa7message\x82\xa2in\xa3s:a\xa2is\x91\xc0"
    ]


def test_publications_without_subscribers_are_counted_and_not_decoded() -> None:
    rig = Rig()
    rig.fanout.deliver({KEY: [b"not JSON", b"1"]})
    assert rig.drops("no_subscriber") == 2
    assert rig.drops("invalid") == 0


# -- poison -----------------------------------------------------------------------------------------------------

POISON = [
    b"",
    b"nope",
    b'{"a":',
    b"NaN",
    b"1e999",
    b"[" * 5000,
    b'"\xff"',
    rb'"\ud800"',
    b"1 2",
    b"\xef\xbb\xbf1",
    b"99999999999999999999999",
    b"[" + b"0," * 10_000 + b"0]",
    b"\x93\x01\x02\x03",
]


@pytest.mark.parametrize("poison", POISON, ids=lambda poison: repr(poison[:12]))
def test_poison_is_dropped_and_counted_and_its_neighbours_arrive_in_order(poison: bytes) -> None:
    rig = Rig()
    one, other, binary = rig.subscriber(), rig.subscriber(OTHER), rig.subscriber(dialect=MSGPACK)
    rig.fanout.deliver({KEY: [b"1", poison, b"2", poison, b"3"], OTHER: [b"4"]})
    assert rig.got(one) == [1, 2, 3]
    assert rig.got(other, OTHER) == [4]
    assert len(rig.wires[binary].writes) == 1
    assert rig.drops("invalid") == 2
    assert rig.sample("snorky_publications_received_total") == 6
    assert rig.sample("snorky_unsequenced_publications_total") == 4


def test_read_of_nothing_but_poison_writes_nothing() -> None:
    rig = Rig()
    one = rig.subscriber()
    rig.fanout.deliver({KEY: POISON})
    assert rig.wires[one].writes == []
    assert rig.drops("invalid") == len(POISON)


def test_publications_above_the_size_limit_are_dropped_and_counted_as_such() -> None:
    rig = Rig()
    one, heard = rig.subscriber(), []
    rig.fanout.listen(OTHER, heard.extend)
    for key in (KEY, OTHER):
        rig.fanout.deliver({key: [b"1", b'"%b"' % (b"x" * 99_999), b"2"]})
        rig.fanout.deliver({key: [b'"%b"' % (b"x" * 99_998)]})
    assert [each if isinstance(each, int) else len(each) for each in rig.got(one)] == [1, 2, 99_998]
    assert [len(each.payload) for each in heard] == [1, 1, 100_000]
    assert rig.drops("too_large") == 2


def test_unknown_version_is_dropped_and_counted_as_such() -> None:
    rig = Rig()
    one = rig.subscriber()
    rig.fanout.deliver({KEY: [b"1", b"\xc19 e:1:t p j\n2", b"3"]})
    assert rig.got(one) == [1, 3]
    assert rig.drops("unknown_version") == 1
    assert rig.drops("invalid") == 0


# -- chunks -----------------------------------------------------------------------------------------------------


async def test_pass_over_many_clients_is_cut_into_chunks_a_tick_each() -> None:
    rig = Rig(chunk=10)
    connections = [rig.subscriber() for _ in range(35)]
    rig.fanout.deliver(numbers(1))
    reached: list[int] = []
    while not reached or reached[-1] < 35:
        reached.append(sum(bool(rig.got(each)) for each in connections))
        await asyncio.sleep(0)
    assert reached == [10, 20, 30, 35]


async def test_publications_during_running_passes_wait_for_their_turn() -> None:
    """However often a message is published: at most one chunk is written per loop iteration."""
    rig = Rig(chunk=10)
    connections = [rig.subscriber() for _ in range(35)]
    for number in range(4):
        rig.fanout.deliver(numbers(number))
        assert sum(len(rig.wires[each].writes) for each in connections) == 10
    await asyncio.sleep(0)
    assert sum(len(rig.wires[each].writes) for each in connections) == 20
    await settle()
    assert all(rig.got(each) == [0, 1, 2, 3] for each in connections)
    assert rig.sample("snorky_fanout_pass_duration_seconds_count") == 1


async def test_several_small_passes_share_a_tick() -> None:
    rig = Rig(chunk=10)
    connections = [rig.subscriber(f"s:{number}") for number in range(10)]
    rig.fanout.deliver({f"s:{number}": [b"1"] for number in range(10)})
    assert all(rig.wires[each].writes for each in connections)
    assert rig.source.calls == []


async def test_source_pauses_once_while_passes_are_under_way_and_resumes_once_after() -> None:
    rig = Rig(chunk=2)
    connections = [rig.subscriber() for _ in range(9)]
    rig.fanout.deliver(numbers(1))
    rig.fanout.deliver(numbers(2))
    await settle()
    assert rig.source.calls == ["pause", "resume"]
    assert all(rig.got(each) == [1, 2] for each in connections)
    rig.fanout.deliver(numbers(3))
    await settle()
    assert rig.source.calls == ["pause", "resume"] * 2


async def test_source_is_left_alone_by_passes_that_fit() -> None:
    rig = Rig()
    rig.subscriber()
    rig.fanout.deliver(numbers(1))
    assert rig.source.calls == []


async def test_stop_discards_the_rest_and_resumes_the_source() -> None:
    rig = Rig(chunk=2)
    connections = [rig.subscriber() for _ in range(9)]
    rig.fanout.deliver(numbers(1))
    rig.fanout.stop()
    await settle()
    assert sum(bool(rig.got(each)) for each in connections) == 2
    assert rig.source.calls == ["pause", "resume"]


@settings(max_examples=150, deadline=None)
@given(
    chunk=st.integers(1, 7),
    clients=st.lists(st.sets(st.sampled_from("abc")), min_size=1, max_size=12),
    reads=st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=3), max_size=12),
)
def test_passes_never_overtake(chunk: int, clients: list[set[str]], reads: list[list[tuple[str, int]]]) -> None:
    """Reads of several channels, some before and some between the chunks: everybody gets all of a channel in order."""

    async def run() -> None:
        rig = Rig(chunk=chunk)
        connections = []
        for index, channels in enumerate(clients):
            connection = Connection(FakeWire(), JSON, node_id="n", serial=index)
            rig.wires[connection] = connection._wire  # type: ignore[assignment]
            for name in sorted(channels):
                rig.add(connection, f"s:{name}")
            connections.append(connection)
        sent: dict[str, list[int]] = {name: [] for name in "abc"}
        total = 0
        for read in reads:
            batch: dict[str, list[bytes]] = {}
            for name, count in read:
                for _ in range(count):
                    total += 1
                    sent[name].append(total)
                    batch.setdefault(f"s:{name}", []).append(b"%d" % total)
            rig.fanout.deliver(batch)
            if total % 2:  # sometimes a chunk goes out in between, sometimes not
                await asyncio.sleep(0)
        await settle(200)
        for channels, connection in zip(clients, connections, strict=True):
            for name in "abc":
                assert rig.got(connection, f"s:{name}") == (sent[name] if name in channels else [])
        assert rig.source.calls == ["pause", "resume"] * (len(rig.source.calls) // 2)

    asyncio.run(run())


# -- what happens between two chunks ----------------------------------------------------------------------------


def _remove(rig: Rig, connection: Connection) -> None:
    rig.hub.remove(connection, KEY)


def _remove_all(rig: Rig, connection: Connection) -> None:
    rig.hub.remove_all(connection)
    connection.mark_closed()


@pytest.mark.parametrize("leave", [_remove, _remove_all])
async def test_client_leaving_between_chunks_gets_nothing_more(leave: Callable[[Rig, Connection], None]) -> None:
    rig = Rig(chunk=2)
    connections = [rig.subscriber() for _ in range(7)]
    rig.fanout.deliver(numbers(1, 2))
    for index in (1, 3, 6):
        leave(rig, connections[index])
    await settle()
    got = [rig.got(each) for each in connections]
    assert got == [[1, 2], [1, 2], [1, 2], [], [1, 2], [1, 2], []]


async def test_the_pass_ends_if_all_clients_leave_between_chunks() -> None:
    rig = Rig(chunk=2)
    connections = [rig.subscriber() for _ in range(7)]
    rig.fanout.deliver(numbers(1))
    for each in connections:
        rig.hub.remove(each, KEY)
    await settle()
    assert sum(len(wire.writes) for wire in rig.wires.values()) == 2
    assert rig.source.calls == ["pause", "resume"]


async def test_client_joining_between_chunks_gets_only_later_publications() -> None:
    rig = Rig(chunk=2)
    for _ in range(5):
        rig.subscriber()
    rig.fanout.deliver(numbers(1))
    late = rig.subscriber()
    rig.fanout.deliver(numbers(2))
    await settle()
    assert rig.got(late) == [2]


async def test_client_of_a_channel_made_again_between_chunks_gets_nothing_of_the_old() -> None:
    rig = Rig(chunk=1)
    old = [rig.subscriber() for _ in range(3)]
    rig.fanout.deliver(numbers(1))
    for each in old:
        rig.hub.remove(each, KEY)
    new = rig.subscriber()
    await settle()
    assert rig.got(new) == []


def test_connection_that_closes_itself_in_a_pass_affects_no_other() -> None:
    """As a slow consumer does; it is still in the tuple of the pass."""
    rig = Rig()
    connections = [rig.subscriber() for _ in range(3)]
    rig.wires[connections[0]].on_write = lambda: connections[1].close(4008)
    rig.fanout.deliver(numbers(1))
    rig.fanout.deliver(numbers(2))
    assert [rig.got(each) for each in connections] == [[1, 2], [], [1, 2]]


def test_connection_that_leaves_the_hub_in_a_pass_affects_no_other() -> None:
    rig = Rig()
    connections = [rig.subscriber() for _ in range(3)]

    def leave() -> None:
        rig.wires[connections[0]].on_write = lambda: None
        for each in connections:
            rig.hub.remove(each, KEY)

    rig.wires[connections[0]].on_write = leave
    rig.fanout.deliver(numbers(1))
    rig.fanout.deliver(numbers(2))
    assert [rig.got(each) for each in connections] == [[1], [1], [1]]
    assert rig.drops("no_subscriber") == 1


@pytest.mark.parametrize("chunk", [2, 1000])
async def test_wire_that_raises_is_closed_and_logged_once_and_the_others_live_on(chunk: int) -> None:
    rig = Rig(chunk=chunk)
    connections = [rig.subscriber() for _ in range(5)]

    def fail() -> None:
        raise RuntimeError("the handler is closed")

    rig.wires[connections[2]].on_write = fail
    with capture_logs() as logs:
        rig.fanout.deliver(numbers(1))
        rig.fanout.deliver(numbers(2))
        await settle()
    assert [rig.got(each) for each in connections] == [[1, 2], [1, 2], [], [1, 2], [1, 2]]
    assert rig.wires[connections[2]].closes == [(1011, "Internal error")]
    assert [entry["event"] for entry in logs] == ["write failed"]


# -- numbers ----------------------------------------------------------------------------------------------------


async def test_deliveries_and_passes_are_counted() -> None:
    rig = Rig(chunk=2)
    for _ in range(3):
        rig.subscriber()
    rig.subscriber(dialect=MSGPACK)
    rig.fanout.deliver(numbers(1, 2))
    await settle()
    assert rig.sample("snorky_deliveries_total") == 8
    written = sum(len(data) for wire in rig.wires.values() for data in wire.writes)
    assert rig.sample("snorky_sent_bytes_total") == written
    assert rig.sample("snorky_fanout_pass_duration_seconds_count") == 1


async def test_lag_ends_when_the_last_chunk_is_written() -> None:
    rig = Rig(chunk=1)
    for _ in range(4):
        rig.subscriber()
    rig.fanout.expect(KEY, b"7")
    rig.fanout.deliver(numbers(6))
    await settle()
    assert rig.sample("snorky_delivery_latency_seconds_count") == 0, "that was another one"
    rig.fanout.deliver(numbers(7))
    assert rig.sample("snorky_delivery_latency_seconds_count") == 0, "its last client has not got it yet"
    await settle()
    assert rig.sample("snorky_delivery_latency_seconds_count") == 1
    rig.fanout.deliver(numbers(7))
    await settle()
    assert rig.sample("snorky_delivery_latency_seconds_count") == 1, "it was timed already"


def test_lost_probe_is_replaced_by_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("snorky.gateway.delivery.fan_out.perf_counter", lambda: now_s)
    rig = Rig()
    rig.subscriber()
    rig.fanout.expect(KEY, b"1")  # and Redis loses it
    now_s += 5
    rig.fanout.expect(KEY, b"2")
    rig.fanout.deliver(numbers(2))
    assert rig.sample("snorky_delivery_latency_seconds_count") == 0, "one at a time is timed"
    now_s += 6
    rig.fanout.expect(KEY, b"3")
    now_s += 0.2
    rig.fanout.deliver(numbers(3))
    assert rig.sample("snorky_delivery_latency_seconds_sum") == pytest.approx(0.2)


def test_log_names_a_channel_that_is_fed_poison_and_is_not_flooded() -> None:
    rig = Rig()
    rig.subscriber()
    with capture_logs() as logs:
        for _ in range(100):
            rig.fanout.deliver({KEY: [b"secret poison", b"1"]})
    assert [(each["event"], each["channel"], each["reason"]) for each in logs] == [
        ("publication dropped", KEY, "invalid")
    ]
    assert "secret" not in repr(logs)


# -- addressed publications -------------------------------------------------------------------------------------------


def addressed(value: int, selector: Selector) -> bytes:
    return write_addressed(b"%d" % value, selector)


def test_addressed_publication_reaches_whom_it_selects_in_its_place_among_the_others() -> None:
    rig = Rig()
    bob, ann, packed = rig.subscriber(), rig.subscriber(), rig.subscriber(dialect=MSGPACK)
    bob.identity, ann.identity, packed.identity = "bob", "ann", "bob"
    rig.fanout.deliver(
        {
            KEY: [
                b"1",
                addressed(2, Selector(only_identity="bob")),
                b"3",
                addressed(4, Selector(not_identity="bob")),
                addressed(5, Selector(not_connection=bob.id)),
                addressed(6, Selector(only_identity="nobody")),
                b"7",
            ]
        }
    )
    assert rig.got(bob) == [1, 2, 3, 7]
    assert rig.got(ann) == [1, 3, 4, 5, 7]
    assert [write[-1] for write in rig.wires[packed].writes] == [1, 2, 3, 5, 7]


def test_publications_for_all_are_one_write_despite_one_addressed_to_others() -> None:
    rig = Rig()
    bob = rig.subscriber()
    rig.fanout.deliver({KEY: [b"1", b"2", addressed(3, Selector(only_identity="ann"))]})
    assert rig.got(bob) == [1, 2]
    assert len(rig.wires[bob].writes) == 1


def test_poison_among_addressed_ones_is_counted_by_its_kind() -> None:
    rig = Rig()
    bob = rig.subscriber()
    poison = [MARK + b"9 x\n1", MARK + b"2 j [\n1", write_addressed(b"NaN", Selector()), MARK + b'2 j {"new":"x"}\n1']
    rig.fanout.deliver({KEY: [b"1", *poison, b"2"]})
    assert rig.got(bob) == [1, 2]
    assert (rig.drops("unknown_version"), rig.drops("invalid")) == (2, 2)


def test_only_publications_without_position_and_address_count_as_unsequenced() -> None:
    rig = Rig()
    bob = rig.subscriber()
    rig.fanout.deliver({KEY: [b"1", addressed(2, Selector()), MARK + b"1 e:1:t t0 j\n3"]})
    assert rig.got(bob) == [1, 2, 3]
    assert rig.sample("snorky_unsequenced_publications_total") == 1


async def test_client_that_leaves_while_its_pass_is_queued_gets_nothing_more() -> None:
    rig = Rig(chunk=3)
    many = [rig.subscriber(OTHER) for _ in range(4)]
    leaver, stayer = rig.subscriber(), rig.subscriber()
    rig.fanout.deliver({OTHER: [b"1"], KEY: [b"2"]})
    rig.hub.remove(leaver, KEY)
    await settle()
    assert rig.got(many[3], OTHER) == [1]
    assert (rig.got(leaver), rig.got(stayer)) == ([], [2])


# -- buffering subscribers --------------------------------------------------------------------------------------------


def test_publications_for_a_buffering_client_are_queued_in_order() -> None:
    rig = Rig()
    other = rig.subscriber()
    wire = FakeWire()
    held = Connection(wire, JSON, node_id="n", serial=99)
    held.identity = "bob"
    rig.wires[held] = wire
    rig.hub.add(held, KEY, Template("s", {"in": KEY, "is": PAYLOAD}), is_held=True)
    rig.fanout.deliver(
        {KEY: [b"1", addressed(2, Selector(only_identity="bob")), addressed(3, Selector(not_identity="bob"))]}
    )
    assert rig.got(other) == [1, 3]
    assert wire.writes == []
    held.write(b"".join(rig.hub.release(held, KEY)))
    rig.fanout.deliver(numbers(4))
    assert rig.got(held) == [1, 2, 4]
    assert rig.hub.release(held, KEY) == []


def test_a_buffering_client_that_leaves_gets_nothing_more() -> None:
    rig = Rig()
    held = rig.subscriber()
    rig.hub.remove(held, KEY)
    rig.hub.add(held, KEY, Template("s", PAYLOAD), is_held=True)
    rig.fanout.deliver(numbers(1))
    rig.hub.remove(held, KEY)
    assert rig.hub.release(held, KEY) == []
    rig.add(held)
    rig.fanout.deliver(numbers(2))
    assert rig.got(held) == [2]


def test_a_client_with_too_much_buffered_is_a_slow_consumer() -> None:
    rig = Rig()
    wire = FakeWire()
    held = Connection(wire, JSON, node_id="n", serial=1, outbox_max_bytes=100)
    rig.hub.add(held, KEY, Template("s", PAYLOAD), is_held=True)
    rig.fanout.deliver({KEY: [b'"' + b"x" * 50 + b'"']})
    assert not held.is_closed
    rig.fanout.deliver({KEY: [b'"' + b"x" * 50 + b'"']})
    assert wire.closes == [(4008, "Slow consumer")]
    assert rig.hub.release(held, KEY) == [], "and its memory is released"


# -- recovering subscribers -------------------------------------------------------------------------------------------


class Script:
    """A history_filter of one channel that answers what the test sets."""

    def __init__(self) -> None:
        self.heard: list[Publication] = []

    def __contains__(self, key: str) -> bool:
        return key == KEY

    def hear(self, key: str, publications: Sequence[Publication]) -> list[Step]:
        self.heard += publications
        return list(publications)


class FollowingRig(Rig):
    """With a channel that keeps a history."""

    def __init__(self, chunk: int = 1000) -> None:
        super().__init__()
        self.script = Script()
        self.fanout = Fanout(self.hub, self.source, self.metrics, history_filter=self.script, chunk=chunk)

    def recovered(self, dialect: Dialect = JSON) -> Connection:
        wire = FakeWire()
        connection = Connection(wire, dialect, node_id="n", serial=len(self.wires))
        self.wires[connection] = wire
        self.recover(connection)
        return connection

    def recover(self, connection: Connection) -> None:
        self.hub.add(connection, KEY, Template("s", {"in": KEY, "is": PAYLOAD}), is_pending=True)
        self.hub.go_live(connection, KEY, lambda position: {"gap": str(position)})

    def got_all(self, connection: Connection) -> list[Json]:
        return [decode_json(line) for line in b"".join(self.wires[connection].writes).splitlines()]


def at(offset: int, payload: bytes = b"7") -> Publication:
    return Publication(payload, Position("e", offset, f"t{offset}"), f"t{offset - 1}")


def test_each_shape_gets_its_steps_in_order() -> None:
    rig = FollowingRig()
    plain, other, packed = rig.subscriber(), rig.recovered(), rig.recovered(MSGPACK)
    other.identity = "bob"
    steps: list[Step] = [
        at(1),
        Publication(b'"bare"'),
        Gap(Position("e", 4, "t4")),
        Late(at(2)),
        at(5),
        Publication(b'"bob"', selector=Selector(only_identity="bob")),
        at(6, b"NaN"),
        Publication(b"NaN"),
    ]
    rig.fanout.pass_on(KEY, steps)
    assert rig.got(plain) == [7, "bare", 7, 7]

    def placed(value: Json, offset: int, **more: Json) -> Json:
        place = {"offset": offset, "position": f"e:{offset}:t{offset}"}
        return {"service": "s", "message": {"in": KEY, "is": value, **more, **place}}

    def unplaced(value: Json) -> Json:
        return {"service": "s", "message": {"in": KEY, "is": value}}

    assert rig.got_all(other) == [
        placed(7, 1),
        unplaced("bare"),
        {"gap": "e:4:t4"},
        placed(7, 5),
        unplaced("bob"),
        placed(None, 6, tombstone=True),
    ]
    unpacker = msgpack.Unpacker()
    unpacker.feed(b"".join(rig.wires[packed].writes))
    assert list(unpacker) == [each for each in rig.got_all(other) if each != unplaced("bob")]
    assert rig.drops("invalid") == 2
    assert rig.sample("snorky_unsequenced_publications_total") == 1


def test_followed_channel_is_delivered_as_its_filter_decides() -> None:
    rig = FollowingRig()
    one = rig.recovered()
    sequenced = MARK + b"1 e:1:t1 t0 j\n7"
    rig.fanout.deliver({KEY: [sequenced, MARK + b"9\n1"], OTHER: [b"1"]})
    assert rig.script.heard == [at(1)]
    assert len(rig.got_all(one)) == 1
    assert (rig.drops("unknown_version"), rig.drops("no_subscriber")) == (1, 1)


async def test_a_client_that_resumes_during_a_pass_does_not_get_that_pass() -> None:
    """The client was notified of the gap up to there; it would get those messages twice."""
    rig = FollowingRig(chunk=2)
    crowd = [rig.recovered() for _ in range(5)]
    rig.fanout.pass_on(KEY, [at(1)])
    rig.hub.remove(crowd[4], KEY)
    rig.recover(crowd[4])
    rig.fanout.pass_on(KEY, [at(2)])
    await settle()
    offsets = [[each["message"]["offset"] for each in rig.got_all(one)] for one in crowd]  # type: ignore[index,call-overload]
    assert offsets == [[1, 2]] * 4 + [[2]]


# -- the node's own listener ------------------------------------------------------------------------------------------


def test_listener_gets_the_messages_of_a_read_in_order_before_the_connections() -> None:
    rig = Rig()
    seen: list[object] = []
    subscriber = rig.subscriber()
    rig.wires[subscriber].on_write = lambda: seen.append("written")
    rig.fanout.listen(KEY, lambda batch: seen.append([each.payload for each in batch]))
    rig.fanout.deliver({KEY: [b"1", addressed(2, Selector(only_identity="x")), b"3"], OTHER: [b"4"]})
    assert seen == [[b"1", b"2", b"3"], "written"]


def test_listener_receives_a_channel_without_clients_and_no_invalid_payload() -> None:
    rig = Rig()
    seen: list[bytes] = []
    rig.fanout.listen(KEY, lambda batch: seen.extend(each.payload for each in batch))
    rig.fanout.deliver({KEY: [b"1", b"NaN", MARK + b"9\n1"]})
    rig.fanout.deliver({KEY: [b"NaN"]})
    assert seen == [b"1"]
    assert (rig.drops("invalid"), rig.drops("unknown_version"), rig.drops("no_subscriber")) == (2, 1, 0)
    assert rig.fanout.unlisten(KEY)
    assert not rig.fanout.unlisten(KEY)
    rig.fanout.deliver(numbers(2))
    assert seen == [b"1"]
    assert rig.drops("no_subscriber") == 1


def test_poison_that_a_listener_and_clients_share_is_counted_once() -> None:
    rig = Rig()
    rig.subscriber()
    rig.fanout.listen(KEY, lambda batch: None)
    rig.fanout.deliver({KEY: [b"NaN"]})
    assert rig.drops("invalid") == 1


def test_listener_that_fails_delays_no_client() -> None:
    def fail(batch: object) -> None:
        raise ValueError("a service's fault")

    rig = Rig()
    subscriber = rig.subscriber()
    rig.fanout.listen(KEY, fail)
    with capture_logs() as logs:
        rig.fanout.deliver(numbers(1))
    assert rig.got(subscriber) == [1]
    assert [log["event"] for log in logs] == ["listener failed"]
