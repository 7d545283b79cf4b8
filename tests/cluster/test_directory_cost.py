"""What presence costs Redis when nothing happens: commands a second by the number of nodes, not of members."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.directories import REAL, FakeNode, RedisTestCluster, open_cluster
from tests.support.redis_servers import REAL_KINDS

SECONDS = 4.0
# Of leases alone: a look a second (4 calls, those inside the script counted), a renewal every 2 s (4 calls).
# Beside them each node's broker sends a canary every 2 s.
CALLS_PER_NODE_S = 8.0


async def calls(client: Any) -> int:
    """Count commands so far, without the ones that ask."""
    stats = await client.info("commandstats")
    return sum(each["calls"] for name, each in stats.items() if name not in ("cmdstat_info", "cmdstat_ping"))


async def rate(client: Any) -> float:
    before = await calls(client)
    await asyncio.sleep(SECONDS)  # what happens in that time is what is measured
    return (await calls(client) - before) / SECONDS


async def crowd(node: FakeNode, count: int) -> None:
    for start in range(0, count, 500):
        serials = range(start, start + 500)
        await asyncio.gather(*(node.directory.enter(f"chat:{s % 100}", s, f"user{s}") for s in serials))
        await asyncio.gather(*(node.directory.claim("messaging:names", f"{node.node_id}{s}", s) for s in serials))


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_an_idle_cluster_costs_by_the_node_and_not_by_the_member(kind: str, tmp_path: Path) -> None:
    async with open_cluster(kind, tmp_path, timings=REAL) as cluster:
        assert isinstance(cluster, RedisTestCluster)
        nodes = [await cluster.node(f"n{number}") for number in range(5)]
        async with cluster.client() as client:
            for node in nodes:
                await node.directory.enter("chat:room", 1, "alice")
            empty = await rate(client)
            await asyncio.gather(*(crowd(node, 1_000) for node in nodes))
            full = await rate(client)
    print(f"5 nodes, {kind}: {empty:.1f} calls/s with 5 members, {full:.1f} with 5,000 and as many names")
    assert full <= CALLS_PER_NODE_S * len(nodes)
    assert full <= 1.2 * empty + 1


async def test_a_crowd_that_enters_one_roster_shares_its_lists(tmp_path: Path) -> None:
    async with open_cluster(REAL_KINDS[0], tmp_path, timings=REAL) as cluster:
        assert isinstance(cluster, RedisTestCluster)
        node = await cluster.node("a")
        await node.enter("chat:room", 0, "first")
        async with cluster.client() as client:
            await asyncio.gather(*(node.enter("chat:room", serial, f"user{serial}") for serial in range(1, 1001)))
            lists = (await client.info("commandstats"))["cmdstat_hgetall"]["calls"]
    assert lists < 100, "each asked for its own"
