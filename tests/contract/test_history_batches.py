"""What one turn of the loop publishes to one channel: one call of the script, and an outcome for each publication."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from snorky.gateway.contracts.history import History
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.protocol.publication import Position, Selector, read_publication, write_described
from snorky.gateway.redis.history.batch import BATCH_MAX, BATCH_MAX_BYTES
from snorky.gateway.redis.keys import stream_key
from tests.support.fakes.brokers import PREFIX, open_broker
from tests.support.processes.proxy import FaultProxy
from tests.support.scenarios.histories import HOUR, KEY, fill, keeper_of, payloads, until
from tests.support.servers.redis_servers import REAL_KINDS, start_server

pytestmark = pytest.mark.parametrize("kind", REAL_KINDS)


async def calls_of(client: Any) -> int:
    """How many calls have published, without keys of their callers: each has left a key of its own for 30 s."""
    return len(await client.keys("*:once:own *"))


def offsets(positions: list[Position]) -> list[int]:
    return [position.offset for position in positions]


async def test_one_call_publishes_what_one_turn_of_the_loop_publishes_to_a_channel(kind: str, tmp_path: Path) -> None:
    async with (
        start_server(kind, tmp_path) as server,
        open_broker(server.url) as (broker, recorder),
        keeper_of(server.url) as keeper,
    ):
        client = server.client()
        await broker.subscribe(KEY)
        begun = await keeper.position(KEY)
        await fill(keeper, 1)
        before = await calls_of(client)
        positions = await fill(keeper, BATCH_MAX, first=2)
        assert await calls_of(client) - before == 1
        assert offsets(positions) == list(range(2, BATCH_MAX + 2))
        assert len({position.tag for position in positions}) == BATCH_MAX
        await recorder.until(lambda: len(recorder.of(KEY)) == BATCH_MAX + 1)
        heard = [read_publication(data) for data in recorder.of(KEY)]
        assert [each.position for each in heard[1:]] == positions
        assert all(later.previous_tag == earlier.position.tag for earlier, later in pairwise(heard) if earlier.position)
        assert payloads(await keeper.read(KEY, begun)) == [b"%d" % number for number in range(1, BATCH_MAX + 2)]
        middle = positions[BATCH_MAX // 2]
        assert len(payloads(await keeper.read(KEY, middle))) == BATCH_MAX // 2 - 1, "each position can be read from"
        await client.aclose()


async def test_publications_of_a_batch_have_their_own_attributes_and_selectors(kind: str, tmp_path: Path) -> None:
    async with (
        start_server(kind, tmp_path) as server,
        open_broker(server.url) as (broker, recorder),
        keeper_of(server.url) as keeper,
    ):
        await broker.subscribe(KEY)
        begun, to = await keeper.position(KEY), Selector(not_connection="n.1")
        rests: list[tuple[Selector | None, bytes]] = [(None, b""), (to, b"a"), (None, b"b"), (to, b""), (None, b"")]
        futures = [
            keeper.publish(KEY, b"%d" % number, HOUR, to=selector, attributes=attributes)
            for number, (selector, attributes) in enumerate(rests)
        ]
        await asyncio.gather(*futures)
        await keeper.publish_once(KEY, write_described(b"5", b"c"), "once")
        await recorder.until(lambda: len(recorder.of(KEY)) == 6)
        heard = [read_publication(data) for data in recorder.of(KEY)]
        assert [(each.selector, each.attributes) for each in heard] == [*rests, (None, b"c")]
        kept = await keeper.read(KEY, begun)
        assert kept is not None and [each.attributes for each in kept] == [attributes for _, attributes in rests]
        client = server.client()
        fields = [sorted(entry) for _, entry in await client.xrange(stream_key(PREFIX, KEY))]
        without, described = [b"d", b"p", b"t"], [b"a", b"d", b"p", b"t"]
        assert fields == [without, described, described, without, without]
        await client.aclose()


async def test_reads_count_attributes_and_leave_out_what_no_node_writes(kind: str, tmp_path: Path) -> None:
    async with start_server(kind, tmp_path) as server, keeper_of(server.url) as keeper:
        begun = await keeper.position(KEY)
        await asyncio.gather(*(keeper.publish(KEY, b"1", HOUR, attributes=b"x" * 60_000) for _ in range(20)))
        last = await keeper.publish(KEY, b"2", HOUR, attributes=b"x" * 65_537)
        found, _ = await keeper.recent(KEY, 20, begun)
        assert len(found) == 2, "at most 131,072 bytes"
        found, _ = await keeper.page(KEY, 20, order="oldest")
        assert len(found) == 17, "at most 1 MiB"
        (newest,), _ = await keeper.page(KEY, 1, order="newest")
        every = await keeper.read(KEY, begun)
        assert every is not None and len(every) == 21
        assert [(each.position, each.attributes) for each in (newest, every[-1])] == [(last, b"")] * 2


async def test_large_batches_are_divided(kind: str, tmp_path: Path) -> None:
    async with start_server(kind, tmp_path) as server, keeper_of(server.url) as keeper:
        client = server.client()
        await fill(keeper, 1)
        before = await calls_of(client)
        await fill(keeper, 3 * BATCH_MAX)
        assert await calls_of(client) - before == 3
        large = b"x" * (BATCH_MAX_BYTES // 3)
        positions = await asyncio.gather(*(keeper.publish(KEY, large, HOUR) for _ in range(6)))
        assert await calls_of(client) - before == 6, "two in each"
        assert offsets(positions) == list(range(3 * BATCH_MAX + 2, 3 * BATCH_MAX + 8))
        await client.aclose()


async def test_a_batch_keeps_the_order_of_all_calls_of_its_channel(kind: str, tmp_path: Path) -> None:
    """With keys of the caller, other histories and other channels between them."""
    small = History(ttl_s=3600.0, size=1000)
    async with start_server(kind, tmp_path) as server, keeper_of(server.url) as keeper:
        begun = await keeper.position(KEY)
        futures = []
        for number in range(30):
            history = small if number % 7 == 3 else HOUR
            once = f"key {number}" if number % 5 == 4 else None
            futures.append(keeper.publish(KEY, b"%d" % number, history, once=once))
            futures.append(keeper.publish("datasync:Other", b"other", HOUR))
        positions = await asyncio.gather(*futures)
        assert offsets(positions[::2]) == offsets(positions[1::2]) == list(range(1, 31))
        assert payloads(await keeper.read(KEY, begun)) == [b"%d" % number for number in range(30)]
        assert await keeper.publish(KEY, b"again", HOUR, once="key 4") == positions[8]


async def test_cancelled_publications_are_not_sent(kind: str, tmp_path: Path) -> None:
    async with start_server(kind, tmp_path) as server, keeper_of(server.url) as keeper:
        begun = await keeper.position(KEY)
        futures = [keeper.publish(KEY, b"%d" % number, HOUR) for number in range(6)]
        for future in futures[:3:2]:
            future.cancel()
        positions = await asyncio.gather(*(future for future in futures if not future.cancelled()))
        assert offsets(positions) == [1, 2, 3, 4]
        for future in [keeper.publish(KEY, b"never", HOUR) for _ in range(2)]:
            future.cancel()
        assert offsets(await fill(keeper, 1)) == [5]
        assert payloads(await keeper.read(KEY, begun)) == [b"1", b"3", b"4", b"5", b"1"]


async def test_each_publication_of_a_batch_has_its_selector(kind: str, tmp_path: Path) -> None:
    selectors = [None, Selector(only_identity="ann %s"), None, Selector(not_connection="c1"), Selector.none()]
    async with (
        start_server(kind, tmp_path) as server,
        open_broker(server.url) as (broker, recorder),
        keeper_of(server.url) as keeper,
    ):
        await broker.subscribe(KEY)
        await asyncio.gather(*(keeper.publish(KEY, b"1", HOUR, to=selector) for selector in selectors))
        await recorder.until(lambda: len(recorder.of(KEY)) == len(selectors))
        assert [read_publication(data).selector for data in recorder.of(KEY)] == selectors


async def test_a_batch_whose_reply_is_lost_is_published_once(kind: str, tmp_path: Path) -> None:
    async with start_server(kind, tmp_path) as server, FaultProxy("127.0.0.1", server.port) as proxy:
        async with keeper_of(proxy.url) as keeper, keeper_of(server.url) as direct:
            begun = await direct.position(KEY)
            await fill(keeper, 1)
            proxy.lose_replies()
            futures = [keeper.publish(KEY, b"%d" % number, HOUR) for number in range(2, 42)]

            async def is_stored() -> bool:
                return (await direct.position(KEY)).offset == 41

            await until(is_stored)
            stored = await direct.read(KEY, begun)
            futures[7].cancel()  # it has been published already
            proxy.heal()
            proxy.cut()
            answers = await asyncio.gather(*futures, return_exceptions=True)
            assert stored is not None
            assert [answer for number, answer in enumerate(answers) if number != 7] == [
                each.position for number, each in enumerate(stored[1:]) if number != 7
            ]
            assert payloads(await direct.read(KEY, begun)) == [b"%d" % number for number in range(1, 42)]


async def test_a_refusal_is_of_each_publication_and_stores_none(kind: str, tmp_path: Path) -> None:
    async with start_server(kind, tmp_path) as server, keeper_of(server.url) as keeper:
        client = server.client()
        (first,) = await fill(keeper, 1)
        await client.config_set("maxmemory", "1")
        refusals = await asyncio.gather(*(keeper.publish(KEY, b"2", HOUR) for _ in range(5)), return_exceptions=True)
        assert [type(each).__name__ for each in refusals] == ["PublishRefused"] * 5
        assert len({id(each) for each in refusals}) == 5
        assert all(isinstance(each, BrokerUnavailable) and each.is_undone for each in refusals)
        await client.config_set("maxmemory", "0")
        assert await keeper.position(KEY) == first
        assert offsets(await fill(keeper, 2)) == [2, 3]
        await client.aclose()


async def test_size_bounds_a_history_that_a_batch_exceeds(kind: str, tmp_path: Path) -> None:
    async with start_server(kind, tmp_path) as server, keeper_of(server.url) as keeper:
        small = History(ttl_s=3600.0, size=10)
        positions = await fill(keeper, 25, small)
        assert payloads(await keeper.read(KEY, positions[14])) == [b"%d" % number for number in range(16, 26)]
        assert await keeper.read(KEY, positions[13]) is None


async def test_each_publication_of_a_turn_has_the_history_that_it_was_given(kind: str, tmp_path: Path) -> None:
    async with start_server(kind, tmp_path) as server, keeper_of(server.url) as keeper:
        futures = [keeper.publish(KEY, b"%d" % number, HOUR) for number in range(1, 6)]
        futures.append(keeper.publish(KEY, b"6", History(ttl_s=3600.0, size=2)))
        positions = await asyncio.gather(*futures)
        assert payloads(await keeper.read(KEY, positions[3])) == [b"5", b"6"]
        assert await keeper.read(KEY, positions[2]) is None
