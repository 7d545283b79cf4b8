"""Histories on servers that restart, return to an older copy, or lose keys."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.protocol.publication import Position, read_publication
from tests.support.fakes.brokers import PREFIX, open_broker
from tests.support.scenarios.histories import HOUR, KEY, Server, fill, keeper_of, payloads, until
from tests.support.servers.redis_servers import KINDS, REAL_KINDS, RedisServer, start_server

KEPT = Rules([ChannelRule("*", history=100)])


# -- servers only --------------------------------------------------------------------------------------------------


async def tell(server: Server, *words: object) -> Any:
    client = server.client()
    try:
        return await client.execute_command(*words)
    finally:
        await client.aclose()


@pytest.mark.parametrize("kind", REAL_KINDS)
@pytest.mark.parametrize("first", ["read", "publish", "positions", "recent", "function"])
async def test_after_a_restart_from_an_older_copy_no_position_of_before_is_taken(
    kind: str, first: str, tmp_path: Path
) -> None:
    """Writes acknowledged after the copy are lost: a client at the end of the copy must not get `recovered: true`."""
    async with RedisServer(kind, tmp_path) as server, keeper_of(server.url, rules=KEPT) as keeper:
        positions = await fill(keeper, 5)
        await tell(server, "SAVE")
        await fill(keeper, 25, first=6)
        assert len(await keeper.read(KEY, positions[-1]) or []) == 25
        await server.restart()

        async def is_back() -> bool:
            with suppress(BrokerUnavailable):
                await keeper.publish("datasync:Other", b"1", HOUR)
                return await keeper.position("datasync:Other") is not None
            return False

        await until(is_back)
        top = Position("", 0, "")
        if first == "publish":
            (top,) = await fill(keeper, 1, first=31)
        elif first == "positions":
            top = (await keeper.positions([KEY]))[KEY]
        elif first == "recent":
            found, top = await keeper.recent(KEY, 10)
            assert payloads(found) == [b"%d" % number for number in range(1, 6)]  # existing entries stay
        elif first == "function":  # of a user that may not ask for the run

            async def is_taken() -> bool:
                with suppress(ResponseError):  # the node loads the library once it has seen that it is missing
                    return bool(await tell(server, "FCALL", "snorky_publish", 1, f"{PREFIX}:{{{KEY}}}", "31"))
                return False

            await until(is_taken)
        for known in positions:
            assert await keeper.read(KEY, known) is None
        now = await keeper.position(KEY)
        assert now.epoch not in (positions[0].epoch, "") and now.epoch == (top.epoch or now.epoch)
        assert now.offset == (6 if first in ("publish", "function") else 5)
        (after,) = await fill(keeper, 1, first=32)
        assert after.epoch == now.epoch and payloads(await keeper.read(KEY, now)) == [b"32"]
        assert payloads((await keeper.recent(KEY, 1))[0]) == [b"32"]


async def test_large_offsets_are_written_in_full(server: Server) -> None:
    """Lua's tostring makes 1e+15 of this, which is no offset."""
    async with keeper_of(server.url) as keeper:
        client = server.client()
        await keeper.position(KEY)
        await client.hset(f"{PREFIX}:{{{KEY}}}:position", "offset", 999_999_999_999_999)
        positions = await fill(keeper, 3)
        assert [position.offset for position in positions] == [10**15, 10**15 + 1, 10**15 + 2]
        assert payloads(await keeper.read(KEY, positions[0])) == [b"2", b"3"]
        assert (await keeper.recent(KEY, 1))[1] == await keeper.position(KEY) == positions[-1]
        await client.aclose()


async def test_the_entry_is_written_before_the_counter_moves(server: Server) -> None:
    """A publication that the stream refuses is not counted and not sent: otherwise it would look like a gap."""
    async with open_broker(server.url) as (broker, recorder), keeper_of(server.url) as keeper:
        client = server.client()
        await broker.subscribe(KEY)
        (first,) = await fill(keeper, 1)
        await client.xadd(f"{PREFIX}:{{{KEY}}}:history", {"foreign": "entry"}, id="2-1")
        with pytest.raises(BrokerUnavailable):
            await keeper.publish(KEY, b"2", HOUR)
        assert await keeper.position(KEY) == first
        await broker.publish(KEY, b"fence")
        await recorder.until(lambda: b"fence" in recorder.of(KEY))
        assert [read_publication(data).payload for data in recorder.of(KEY)] == [b"1", b"fence"]
        await client.aclose()


async def test_no_key_is_left_without_an_end(server: Server) -> None:
    async with keeper_of(server.url) as keeper:
        await keeper.position("datasync:Other")
        await fill(keeper, 3)
        client = server.client()
        ends = {key: await client.pttl(key) for key in await client.keys("*")}
        assert all(end > 0 for end in ends.values()), ends
        assert (
            len([key for key in ends if b"{nodes}" not in key]) == 4
        )  # 2 states, a stream, the idempotency key of a batch
        await client.aclose()


async def test_a_lost_counter_is_another_epoch_and_the_old_stream_is_not_continued(server: Server) -> None:
    async with keeper_of(server.url) as keeper:
        client = server.client()
        positions = await fill(keeper, 5)
        await client.delete(f"{PREFIX}:{{{KEY}}}:position")
        begun = await keeper.position(KEY)
        assert begun.epoch != positions[0].epoch and begun.offset == 0
        (new,) = await fill(keeper, 1, first=6)
        assert payloads(await keeper.read(KEY, begun)) == [b"6"]
        assert await keeper.read(KEY, positions[0]) is None
        assert new.epoch == begun.epoch and await client.xlen(f"{PREFIX}:{{{KEY}}}:history") == 1
        await client.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_epoch_and_tags_are_others_after_every_start_of_the_server(kind: str, tmp_path: Path) -> None:
    epochs, tags = set(), set()
    async with start_server(kind, tmp_path) as server:
        for _ in range(4):
            async with keeper_of(server.url) as keeper:
                for position in [await keeper.position("s:other"), *await fill(keeper, 3)]:
                    epochs.add(position.epoch)
                    tags.add(position.tag)
            await server.restart()
    assert len(epochs) == 8 and len(tags) == 16


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_offsets_reused_after_a_failover_differ_from_the_first_ones(kind: str, tmp_path: Path) -> None:
    """The state of a lagging replica: same epoch, offsets that were assigned before."""
    async with start_server(kind, tmp_path) as server, keeper_of(server.url) as keeper:
        client = server.client()
        state, stream = f"{PREFIX}:{{{KEY}}}:position", f"{PREFIX}:{{{KEY}}}:history"
        await fill(keeper, 3)
        dumps: dict[str, Any] = {key: await client.dump(key) for key in (state, stream)}
        lost = await fill(keeper, 2, first=4)
        for key, dump in dumps.items():
            await client.restore(key, 0, dump, replace=True)
        again = await fill(keeper, 4, first=6)
        assert [position.offset for position in again] == [4, 5, 6, 7]
        for position in lost:
            assert await keeper.read(KEY, position) is None
        assert payloads(await keeper.read(KEY, again[0])) == [b"7", b"8", b"9"]
        await client.aclose()


async def test_publications_survive_a_script_flush_in_order(server: Server) -> None:
    async with keeper_of(server.url) as keeper:
        begun = await keeper.position(KEY)
        client = server.client()
        await fill(keeper, 1)
        await client.script_flush()
        await fill(keeper, 20, first=2)
        assert payloads(await keeper.read(KEY, begun)) == [b"%d" % number for number in range(1, 22)]
        await client.aclose()
