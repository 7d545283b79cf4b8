"""Large rosters and names: bounded, read in pages, and never at the expense of other rooms."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from snorky.gateway.errors import LimitExceeded
from snorky.gateway.redis import RedisDirectory
from tests.support.fakes.brokers import PREFIX
from tests.support.fakes.directories import PATIENT, FakeNode, RedisTestCluster, open_cluster
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import REAL_KINDS
from tests.support.servers.shared import SharedServers

ROOM = "chat:room"
NAMES = "messaging:names"


@pytest.fixture(params=REAL_KINDS)
async def cluster(request: pytest.FixtureRequest, shared: SharedServers) -> AsyncIterator[RedisTestCluster]:
    async with open_cluster(request.param, shared, timings=PATIENT) as opened:
        assert isinstance(opened, RedisTestCluster)
        yield opened


def directory(node: FakeNode) -> RedisDirectory:
    assert isinstance(node.directory, RedisDirectory)
    return node.directory


async def grow(client: Any, roster: str, count: int, size: int) -> None:
    """Write entries to a roster as a node of an earlier version did: of any size, and not counted."""
    data = "x" * size
    for number in range(count):
        await client.hset(f"{PREFIX}:nodes{{{roster}}}:roster", f"old:i:{number} ", f'3:bob"{data}"')


async def test_an_oversized_roster_closes_no_connection(cluster: RedisTestCluster) -> None:
    """20 MiB: for one reply of that size Redis closes the connection, and all calls waiting on it fail."""
    a = await cluster.node("a")
    await a.enter("chat:other", 1, "alice")
    lost: list[object] = []
    link: Any = directory(a)._commands._link  # type: ignore[union-attr]  # one server has one
    on_down = link._on_down
    link._on_down = lambda error: (lost.append(error), on_down(error))
    async with cluster.client() as client:
        await client.config_set("client-output-buffer-limit", "normal 8388608 0 0")  # as the shipped file, or lower
        await grow(client, ROOM, 320, 65_536)
    listing = asyncio.gather(*(directory(a).members(ROOM) for _ in range(3)))
    joins = [await directory(a).enter("chat:other", serial, f"user {serial}") for serial in range(2, 12)]
    assert [len(members) for members in await listing] == [320] * 3
    assert len(joins[-1].members) == 11
    assert lost == []


async def test_entries_that_a_node_already_has_are_registered_again_whatever_their_size(
    cluster: RedisTestCluster,
) -> None:
    a = await cluster.node("a", roster_max_bytes=2000)
    for serial in range(4):
        await a.enter(ROOM, serial, f"user {serial}", data="x" * 300)
    directory(a)._rosters._max_bytes = b"1000"  # as if other rooms had used the space meanwhile
    async with cluster.client() as client:
        await client.flushall()

    async def all_are_back() -> bool:
        return len(await directory(a).members(ROOM)) == 4

    await eventually(all_are_back, within_s=30, what="the node's members are registered again")
    with pytest.raises(LimitExceeded):
        await a.enter(ROOM, 9, "newcomer")


async def test_bytes_are_recounted_before_an_entry_is_refused(cluster: RedisTestCluster) -> None:
    a = await cluster.node("a", roster_max_bytes=1000)
    await a.enter(ROOM, 1, "alice", data="x" * 300)
    counts = f"{PREFIX}:nodes{{{ROOM}}}:roster:counts"
    async with cluster.client() as client:
        await client.hset(counts, "b", 5000)  # removals by nodes of an earlier version were not counted
        assert await a.enter(ROOM, 2, "bob")
        await client.hset(counts, "b", 5000)
        with pytest.raises(LimitExceeded, match="take 1000 bytes already"):  # not again at once: it costs Redis time
            await a.enter(ROOM, 3, "carol")
        await client.hset(counts, "w", 0)
        assert await directory(a).update(ROOM, 1, data="x" * 301)
        await grow(client, ROOM, 10, 100)
        await client.hset(counts, mapping={"b": 5000, "w": 0})
        with pytest.raises(LimitExceeded):
            await a.enter(ROOM, 3, "carol")


async def test_a_refused_newcomer_leaves_no_state(cluster: RedisTestCluster) -> None:
    a = await cluster.node("a", roster_max_bytes=200)
    await a.enter(ROOM, 1, "alice", data="x" * 100)
    with pytest.raises(LimitExceeded):
        await a.enter(ROOM, 2, "bob", data="x" * 100)
    assert not directory(a)._local_holdings.has_cleanups and 2 not in directory(a)._local_holdings._holdings
    owner = directory(a)._lease.owner

    async def is_forgotten() -> bool:
        async with cluster.client() as client:
            return len(await client.smembers(f"{PREFIX}:{{owned:{owner}}}")) == 1

    await eventually(is_forgotten, within_s=30, what="the index has exactly the held entries")


async def test_a_large_roster_is_read_in_pages(cluster: RedisTestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snorky.gateway.redis.directory.rosters.AT_ONCE_BYTES", 5000)
    a = await cluster.node("a")
    for serial in range(300):
        await directory(a).enter(ROOM, serial, f"user {serial:03d}")
    before = await _calls(cluster, "hgetall")
    census = await directory(a).census(ROOM)
    assert [member.identity for member in census.members] == [f"user {serial:03d}" for serial in range(300)]
    assert [census.version] == await directory(a).versions([ROOM])
    assert await _calls(cluster, "hgetall") == before and await _calls(cluster, "hscan") >= 3


async def test_many_names_are_listed_in_pages_up_to_a_bound(
    cluster: RedisTestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await cluster.node("a")
    await asyncio.gather(*(directory(a).claim(NAMES, f"name {number}", number % 50) for number in range(3000)))
    assert sorted(await directory(a).list_names(NAMES)) == sorted(f"name {number}" for number in range(3000))
    assert await _calls(cluster, "hscan") >= 3
    monkeypatch.setattr("snorky.gateway.redis.directory.names.LIST_MAX_BYTES", 15_000)
    with pytest.raises(LimitExceeded, match="Too many names to list"):
        await directory(a).list_names(NAMES)


async def _calls(cluster: RedisTestCluster, name: str) -> int:
    async with cluster.client() as client:
        told = await client.info("commandstats")
    return int(told.get(f"cmdstat_{name}", {}).get("calls", 0))
