"""Passes over many clients are cut into chunks; what happens between two chunks."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from snorky.gateway.connection.connection import Connection
from snorky.gateway.delivery.write_queue import OPENED_MAX, Batch, WriteQueue
from tests.support.fakes.fake_wire import JSON, FakeTransport, settle
from tests.support.scenarios.fan_out_rig import KEY, Rig, numbers

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
            connection = Connection(FakeTransport(), JSON, node_id="n", serial=index)
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


# -- the extension module ----------------------------------------------------------------------------------------


class DirectWire(FakeTransport):
    """A wire whose socket the fan-out may write to: what it wrote is in `sent`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def make_direct(self) -> Any:
        return self.sent


def send_many(targets: Sequence[Any], data: bytes) -> list[tuple[int, int]] | None:
    """As the extension module's, with lists for sockets."""
    if not any(target is not None for target in targets):
        return None
    for target in targets:
        if target is not None:
            target.append(data)
    return [(index, 0) for index, target in enumerate(targets) if target is None]


async def test_passes_prepare_some_connections_a_chunk_for_the_extension_module() -> None:
    """Preparing costs time, so a chunk prepares so many; those that cannot be prepared do not keep others waiting."""
    wires = [FakeTransport() if number % 3 == 0 else DirectWire() for number in range(3 * OPENED_MAX)]
    connections = [Connection(wire, JSON, node_id="n", serial=serial) for serial, wire in enumerate(wires)]
    group = {each: 1 for each in connections}
    connections[1].pause()
    queue = WriteQueue(Rig().source, chunk=10_000, on_done=lambda: None, send_many=send_many)
    opened = []
    for number in range(4):
        queue.line_up(Batch({JSON: group}, JSON, tuple(connections), b"%d" % number, 1))
        queue.run()
        opened.append(sum(each.direct is not None for each in connections))
    connections[1].resume()
    assert opened == [OPENED_MAX, 2 * OPENED_MAX - 1, 2 * OPENED_MAX - 1, 2 * OPENED_MAX - 1]
    for wire in wires:
        sent = wire.sent if isinstance(wire, DirectWire) else []
        assert b"".join([*wire.writes, *sent]) == b"0123", "by the transport first, then by the extension module"
        assert len(sent) >= 2 or not isinstance(wire, DirectWire) or wire is wires[1]


async def test_connections_that_are_prepared_and_cannot_be_used_now_do_not_count() -> None:
    """Bytes wait in the buffers of their transports, so the extension module uses none."""
    wires = [DirectWire() for _ in range(2 * OPENED_MAX)]
    connections = [Connection(wire, JSON, node_id="n", serial=serial) for serial, wire in enumerate(wires)]
    for connection in connections[:OPENED_MAX]:
        connection.open_direct()
    group = {each: 1 for each in connections}
    queue = WriteQueue(Rig().source, chunk=10_000, on_done=lambda: None, send_many=lambda _targets, _data: None)
    queue.line_up(Batch({JSON: group}, JSON, tuple(connections), b"0", 1))
    queue.run()
    assert all(each.direct is not None for each in connections)


async def test_a_connection_that_cannot_be_prepared_is_closed_and_no_other() -> None:
    class BrokenWire(DirectWire):
        def make_direct(self) -> Any:
            raise OSError("a broken wire")

    wires = [BrokenWire() if number == 1 else DirectWire() for number in range(3)]
    connections = [Connection(wire, JSON, node_id="n", serial=serial) for serial, wire in enumerate(wires)]
    group = {each: 1 for each in connections}
    queue = WriteQueue(Rig().source, chunk=10, on_done=lambda: None, send_many=send_many)
    for number in range(2):
        queue.line_up(Batch({JSON: group}, JSON, tuple(connections), b"%d" % number, 1))
        queue.run()
    assert [b"".join([*wire.writes, *wire.sent]) for wire in wires[::2]] == [b"01", b"01"]
    assert [each.is_closed for each in connections] == [False, True, False]


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
