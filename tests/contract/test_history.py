"""The contract of every HistoryStore: on each kind of server, and in memory. Tests that need Redis are below."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from snorky.gateway.contracts.history import History, HistoryStore, Order
from snorky.gateway.protocol.publication import Position, Selector, read_publication
from snorky.gateway.redis.keys import state_key
from snorky.gateway.redis.multi.hashing import targets_of
from snorky.gateway.redis.multi.history import SpreadHistory
from snorky.gateway.testing.history import Archive, MemoryHistory
from tests.support.fakes.brokers import PREFIX, open_broker
from tests.support.fakes.histories import history_on
from tests.support.scenarios.histories import HOUR, KEY, Server, fill, keeper_of, payloads, until
from tests.support.servers.redis_servers import KINDS, REAL_KINDS, start_server
from tests.support.servers.shared import SharedServers


@asynccontextmanager
async def spread_keeper_of(url: str, **options: Any) -> AsyncIterator[SpreadHistory]:
    keeper = SpreadHistory(targets_of(url).map(lambda _, target: history_on(target, **options)))
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()


@pytest.fixture(params=[*KINDS, "memory", "spread", "cluster"])
async def keepers(
    request: pytest.FixtureRequest, shared: SharedServers
) -> AsyncIterator[tuple[HistoryStore, HistoryStore]]:
    """Those of two nodes."""
    if request.param == "memory":
        archive = Archive()
        yield MemoryHistory(archive), MemoryHistory(archive)
        return
    async with shared.lend(request.param) as server:
        if request.param == "spread":
            async with spread_keeper_of(server.url, page=7) as one, spread_keeper_of(server.url) as other:
                yield one, other
            return
        async with keeper_of(server.url, page=7) as one, keeper_of(server.url) as other:
            yield one, other


async def test_offsets_count_by_one_in_the_order_of_the_calls(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    positions = await fill(keepers[0], 50)
    assert [position.offset for position in positions] == list(range(1, 51))
    assert len({position.epoch for position in positions}) == 1
    assert len({position.tag for position in positions}) == 50


async def test_entries_after_any_position_can_be_read_on_any_node(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    begun = await keepers[1].position(KEY)
    positions = [begun, *await fill(keepers[0], 40)]
    for at in (0, 1, 6, 7, 8, 39, 40):
        read = await keepers[1].read(KEY, positions[at])
        assert payloads(read) == [b"%d" % number for number in range(at + 1, 41)]
        assert read is not None and [each.position for each in read] == positions[at + 1 :]
        assert [each.previous_tag for each in read] == [position.tag for position in positions[at:-1]]
    assert await keepers[0].position(KEY) == positions[-1]


async def test_entries_have_their_attributes(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    begun, three = await keepers[1].position(KEY), History(ttl_s=3600.0, size=3)
    attributes = {2: b'{"n":2}', 4: b'{"n":4}', 5: b"x" * 9_000}
    await asyncio.gather(
        *(
            keepers[0].publish(
                KEY, b"%d" % number, three if number == 5 else HOUR, attributes=attributes.get(number, b"")
            )
            for number in range(1, 6)
        )
    )
    page, top = await keepers[1].page(KEY, 10, order="oldest")
    assert [(each.payload, each.attributes) for each in page] == [
        (b"%d" % number, attributes.get(number, b"")) for number in (3, 4, 5)
    ], "the last one has bounded the history"
    again = await keepers[1].publish(KEY, b"6", HOUR, once="key", to=Selector(not_connection="n.1"), attributes=b"once")
    assert await keepers[0].publish(KEY, b"6", HOUR, once="key", attributes=b"other") == again
    for found in (await keepers[1].read(KEY, top), (await keepers[1].page(KEY, 1, order="newest"))[0]):
        assert found is not None and [(each.payload, each.attributes) for each in found] == [(b"6", b"once")]
    found, _ = await keepers[1].recent(KEY, 2)
    assert [each.attributes for each in found] == [attributes[5], b"once"]
    assert await keepers[1].read(KEY, begun) is None
    assert await keepers[1].read(KEY, page[0].position or begun, max_bytes=9_000) is None, "attributes count"


async def test_removed_entries_are_gone_and_positions_continue(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    positions = await fill(keepers[0], 5)
    await keepers[0].remove("s:never")
    await keepers[1].remove(KEY)
    assert await keepers[0].recent(KEY, 10) == ([], positions[-1])
    assert await keepers[0].read(KEY, positions[-1], is_away=True) == [], "a client that missed nothing recovers"
    assert await keepers[0].read(KEY, positions[-2], is_away=True) is None
    more = await fill(keepers[0], 2)
    assert [position.offset for position in more] == [6, 7] and more[0].epoch == positions[0].epoch
    assert await keepers[1].read(KEY, positions[-2]) is None
    read = await keepers[1].read(KEY, positions[-1], is_away=True)
    assert read is not None and [each.position for each in read] == more


async def test_channels_do_not_share_anything(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    one = await keepers[0].publish("s:a", b"1", HOUR, once="k")
    other = await keepers[0].publish("s:a}:history", b"2", HOUR, once="k")
    assert one.epoch != other.epoch and (one.offset, other.offset) == (1, 1)


async def test_a_position_of_another_history_is_refused(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    keeper = keepers[0]
    assert await keeper.read(KEY, Position("e", 0, "t")) is None  # there is none at all
    first, second, third = await fill(keeper, 3)
    assert await keeper.read(KEY, Position("e", first.offset, first.tag)) is None
    for known in (first, second, third):
        assert await keeper.read(KEY, Position(known.epoch, known.offset, "0123456789abcdef")) is None
    assert await keeper.read(KEY, Position(third.epoch, 4, third.tag)) is None
    assert await keeper.read(KEY, Position(third.epoch, 0, first.tag)) is None


async def test_size_bounds_a_history_and_trimmed_entries_are_lost(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    keeper = keepers[0]
    begun = await keeper.position(KEY)
    positions = await fill(keeper, 10, History(ttl_s=3600.0, size=3))
    assert payloads(await keeper.read(KEY, positions[7])) == [b"9", b"10"]
    # its own entry was trimmed; the next entry carries its tag
    assert payloads(await keeper.read(KEY, positions[6])) == [b"8", b"9", b"10"]
    forged = Position(positions[6].epoch, positions[6].offset, "0123456789abcdef")
    assert await keeper.read(KEY, forged) is None
    assert await keeper.read(KEY, positions[5]) is None
    assert await keeper.read(KEY, begun) is None


async def test_the_same_key_is_published_once_and_answered_alike(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    begun = await keepers[0].position(KEY)
    first = await keepers[0].publish(KEY, b"1", HOUR, once="order 1")
    again = await asyncio.gather(*(keeper.publish(KEY, b"1", HOUR, once="order 1") for keeper in keepers))
    assert again == [first, first]
    second = await keepers[1].publish(KEY, b"2", HOUR, once="order 2")
    assert second.offset == 2
    assert payloads(await keepers[0].read(KEY, begun)) == [b"1", b"2"]


async def test_two_nodes_publishing_at_once_make_one_order(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    begun = await keepers[0].position(KEY)
    one, other = await asyncio.gather(fill(keepers[0], 100), fill(keepers[1], 100, first=1001))
    assert sorted(position.offset for position in one + other) == list(range(1, 201))
    numbers = [int(payload) for payload in payloads(await keepers[0].read(KEY, begun))]
    assert [number for number in numbers if number < 1000] == list(range(1, 101))
    assert [number for number in numbers if number > 1000] == list(range(1001, 1101))


async def test_a_replay_beyond_its_caps_is_none(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    keeper = keepers[0]
    begun = await keeper.position(KEY)
    await fill(keeper, 30)  # of 9 + 21 * 2 bytes
    assert payloads(await keeper.read(KEY, begun, max_entries=30, max_bytes=51)) == [b"%d" % n for n in range(1, 31)]
    assert await keeper.read(KEY, begun, max_entries=29) is None
    assert await keeper.read(KEY, begun, max_bytes=50) is None


async def test_recent_are_the_last_ones_in_order(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    keeper = keepers[0]
    nothing, begun = await keeper.recent(KEY, 5)
    assert nothing == [] and begun == await keeper.position(KEY)
    positions = [begun, *await fill(keeper, 30, History(ttl_s=3600.0, size=20))]
    last, top = await keepers[1].recent(KEY, 3)
    assert (payloads(last), top) == ([b"28", b"29", b"30"], positions[-1])
    assert [(each.position, each.previous_tag) for each in last] == [
        (positions[at], positions[at - 1].tag) for at in (28, 29, 30)
    ]
    assert len((await keeper.recent(KEY, 100))[0]) == 20


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_publications_during_a_read_of_an_empty_history_are_not_skipped(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_server(kind, tmp_path) as server, keeper_of(server.url) as keeper:
        begin = keeper.position

        async def position(key: str) -> Position:
            await fill(keeper, 1)  # another node was faster
            return await begin(key)

        monkeypatch.setattr(keeper, "position", position)
        recent, top = await keeper.recent(KEY, 10)
        assert (payloads(recent), top) == ([b"1"], recent[-1].position)


async def test_the_end_of_a_history_is_read_in_one_step(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publication between two steps would look like a gap: nothing follows the position, and it is not the last."""
    async with keeper_of(server.url) as keeper:
        positions, of_end = await fill(keeper, 3), keeper.position

        async def position(key: str) -> Position:
            await fill(keeper, 1)
            return await of_end(key)

        monkeypatch.setattr(keeper, "position", position)
        assert await keeper.recent(KEY, 5, positions[-1]) == ([], positions[-1])
        found, top = await keeper.recent(KEY, 0, positions[0])
        assert (found, top.offset) == ([], 5), "without a limit nothing was read: the end is asked for"


async def test_a_channel_that_is_only_read_keeps_its_state(server: Server) -> None:
    """Otherwise the next read after a day would find a new history, and report a loss."""
    async with keeper_of(server.url) as keeper, server.client() as redis:
        positions = await fill(keeper, 3)
        for since in (positions[0], positions[-1]):
            await redis.pexpire(state_key(PREFIX, KEY), 60_000)
            await keeper.recent(KEY, 5, since)
            assert await redis.pttl(state_key(PREFIX, KEY)) > 60_000


async def test_recent_after_a_position_returns_the_first_ones(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    keeper = keepers[0]
    positions = await fill(keeper, 30, History(ttl_s=3600.0, size=20))
    found, top = await keeper.recent(KEY, 9, positions[14])
    assert (payloads(found), top) == ([b"%d" % number for number in range(16, 25)], positions[-1])
    assert await keeper.recent(KEY, 9, positions[-1]) == ([], positions[-1])
    gone, top = await keeper.recent(KEY, 2, positions[0])
    assert (payloads(gone), top) == ([b"29", b"30"], positions[-1])  # as if no position had been given


async def test_pages_are_read_from_both_ends_and_from_an_offset(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    keeper = keepers[0]
    assert await keeper.page(KEY, 5, order="oldest") == ([], await keeper.position(KEY))
    positions = await fill(keeper, 60, History(ttl_s=3600.0, size=50))
    pages: list[tuple[int, Order, int | None, list[int]]] = [
        (3, "oldest", None, [11, 12, 13]),
        (3, "oldest", 20, [21, 22, 23]),
        (3, "oldest", 2, [11, 12, 13]),
        (40, "oldest", 20, list(range(21, 61))),
        (3, "oldest", 60, []),
        (3, "newest", None, [60, 59, 58]),
        (3, "newest", 13, [12, 11]),
        (3, "newest", 11, []),
        (3, "newest", 0, []),
        (0, "newest", None, []),
    ]
    for limit, order, beyond, numbers in pages:
        found, top = await keeper.page(KEY, limit, order=order, beyond=beyond)
        assert (payloads(found), top) == ([b"%d" % number for number in numbers], positions[-1])
        assert [each.position for each in found] == [positions[number - 1] for number in numbers]


async def test_position_without_its_tag_is_found_while_it_can_be_read_from(
    keepers: tuple[HistoryStore, HistoryStore],
) -> None:
    keeper = keepers[0]
    assert await keeper.locate(KEY, "", 0) is None  # there is no history
    begun = await keeper.position(KEY)
    assert await keeper.locate(KEY, begun.epoch, 0) == begun
    positions = [begun, *await fill(keeper, 30, History(ttl_s=3600.0, size=20))]
    for offset in (10, 11, 29, 30):  # of the first, the entry is trimmed; its successor knows its tag
        for epoch in ("", begun.epoch):
            assert await keeper.locate(KEY, epoch, offset) == positions[offset]
    for epoch, offset in ((begun.epoch, 9), (begun.epoch, 31), ("another", 30)):
        assert await keeper.locate(KEY, epoch, offset) is None


async def test_positions_are_of_channels_that_have_a_history(keepers: tuple[HistoryStore, HistoryStore]) -> None:
    keeper = keepers[0]
    (top,) = await fill(keeper, 1)
    begun = await keeper.position("datasync:Other")
    keys = [KEY, "datasync:None", "datasync:Other"]
    assert await keeper.positions(keys) == {KEY: top, "datasync:Other": begun}
    assert await keepers[1].positions(keys) == {KEY: top, "datasync:Other": begun}  # and none was started
    assert await keeper.positions([]) == {}


async def test_subscribers_get_stored_publications_with_their_positions(server: Server) -> None:
    async with open_broker(server.url) as (broker, recorder), keeper_of(server.url) as keeper:
        await broker.subscribe(KEY)
        begun = await keeper.position(KEY)
        positions = await fill(keeper, 3)
        await recorder.until(lambda: len(recorder.of(KEY)) == 3)
        heard = [read_publication(data) for data in recorder.of(KEY)]
        assert heard == await keeper.read(KEY, begun)
        assert [each.position for each in heard] == positions


async def test_any_payload_bytes_are_preserved(server: Server) -> None:
    payload = bytes(range(256)) * 4
    async with keeper_of(server.url) as keeper:
        begun = await keeper.position(KEY)
        await keeper.publish(KEY, payload, HOUR)
        assert payloads(await keeper.read(KEY, begun)) == [payload]


async def test_pages_are_bounded_in_bytes_too(server: Server) -> None:
    async with keeper_of(server.url) as keeper:
        begun = await keeper.position(KEY)
        large = [b"%d" % number + b"x" * 400_000 for number in range(7)]
        await asyncio.gather(*(keeper.publish(KEY, payload, HOUR) for payload in large))
        assert payloads(await keeper.read(KEY, begun)) == large


async def test_a_reply_is_bounded_whatever_single_entries_are(server: Server) -> None:
    """An entry that is too large is read as a tombstone; of the largest allowed ones, a page returns one."""
    async with keeper_of(server.url, payload_max_bytes=1_500_000) as keeper:
        begun = await keeper.position(KEY)
        sizes = [10, 1_500_000, 1_500_001, 1_500_000, 17 << 20, 20]
        for size in sizes:
            await keeper.publish(KEY, b"x" * size, HOUR)
        expected = [b"x" * size if size <= 1_500_000 else b"null" for size in sizes]
        assert payloads(read := await keeper.read(KEY, begun)) == expected
        assert read is not None
        assert [each.fault for each in read] == ["", "", "too_large", "", "too_large", ""]
        first, _ = await keeper.recent(KEY, 100, begun)
        assert payloads(first) == expected[:1]
        assert read[0].position is not None
        assert payloads((await keeper.recent(KEY, 100, read[0].position))[0]) == expected[1:2]
        last, top = await keeper.recent(KEY, 100)
        assert payloads(last) == expected[-2:] and last[-1].position == top
        assert payloads((await keeper.recent(KEY, 1))[0]) == expected[-1:]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 32, 33, 40])
async def test_any_number_is_read_in_order(server: Server, count: int) -> None:
    async with keeper_of(server.url) as keeper:
        begun = await keeper.position(KEY)
        await fill(keeper, 40)
        assert payloads((await keeper.recent(KEY, count, begun))[0]) == [b"%d" % each for each in range(1, count + 1)]
        assert payloads((await keeper.recent(KEY, count))[0]) == [b"%d" % each for each in range(41 - count, 41)]


async def test_time_bounds_also_a_channel_that_is_never_quiet(server: Server) -> None:
    async with keeper_of(server.url) as keeper:
        client = server.client()
        begun = await keeper.position(KEY)
        loop = asyncio.get_running_loop()
        times: list[tuple[float, float]] = []  # of each: when it was sent, when it was answered
        ttl_s, step_s = 0.4, 0.4 / 16
        while True:
            sent_s = loop.time()
            last = await keeper.publish(KEY, b"x", History(ttl_s=ttl_s))
            times.append((sent_s, loop.time()))
            if loop.time() - times[0][0] >= 1.2:
                kept = await client.xlen(f"{PREFIX}:{{{KEY}}}:history")
                if loop.time() - sent_s < ttl_s:  # otherwise all may have expired, as in a channel that is quiet
                    break
        end_s = times[-1][1]
        pause_s = max(later[1] - earlier[1] for earlier, later in pairwise(times))  # old entries are read in steps
        assert kept >= sum(sent_s > end_s - ttl_s for sent_s, _ in times)
        assert kept <= sum(answered_s > end_s - ttl_s - 2 * step_s - 4 * pause_s for _, answered_s in times)
        assert await keeper.read(KEY, begun) is None
        assert await keeper.read(KEY, last) == []
        await client.aclose()


async def test_the_counter_outlives_the_stored_entries(server: Server) -> None:
    async with keeper_of(server.url) as keeper:
        client = server.client()
        stream, state = f"{PREFIX}:{{{KEY}}}:history", f"{PREFIX}:{{{KEY}}}:position"
        first, second = await fill(keeper, 2, History(ttl_s=0.1))

        async def is_gone() -> bool:
            return not await client.exists(stream)

        await until(is_gone)
        assert await client.pttl(state) > 86_000_000
        assert await keeper.read(KEY, second) == []
        assert await keeper.read(KEY, first) is None
        (third,) = await fill(keeper, 1, first=3)
        assert (third.epoch, third.offset) == (second.epoch, 3)
        assert payloads(await keeper.read(KEY, second)) == [b"3"]
        assert await client.pttl(stream) > 3_600_000
        await client.aclose()


async def test_comparing_keeps_the_state_of_a_quiet_channel(server: Server) -> None:
    async with keeper_of(server.url) as keeper:
        client = server.client()
        state = f"{PREFIX}:{{{KEY}}}:position"
        await keeper.position(KEY)
        await client.pexpire(state, 60_000)
        await keeper.positions([KEY])
        assert await client.pttl(state) > 86_000_000
        await client.pexpire(state, 90_000_000)
        await keeper.positions([KEY])
        assert await client.pttl(state) > 89_000_000  # never shorter
        await client.aclose()


async def test_without_a_history_a_publication_is_sent_once_per_key(server: Server) -> None:
    async with open_broker(server.url) as (broker, recorder), keeper_of(server.url) as keeper:
        await broker.subscribe(KEY)
        for payload, once in ((b"1", "a"), (b"1", "a"), (b"2", "b"), (b"2", "b"), (b"3", "a b")):
            assert await keeper.publish_once(KEY, payload, once) is None
        await recorder.until(lambda: b"3" in recorder.of(KEY))
        assert recorder.of(KEY) == [b"1", b"2", b"3"]  # as any client publishes: without a header
        assert await keeper.positions([KEY]) == {}
