"""Cost of idle presence in Redis: commands per second depend on the number of nodes, not of members.

DIRECTORY_MEMBERS: how many, in the full cluster (20,000 unless set; 100,000 for the long run).
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from redis.asyncio import Redis

from snorky.gateway import ServiceRegistry
from snorky.gateway.config.settings import Settings
from snorky.gateway.runtime.node import running_node
from snorky.gateway.testing.client import MemoryClient
from snorky.services.pubsub import PubSubService
from tests.support.fakes.directories import REAL, FakeNode, RedisTestCluster
from tests.support.scenarios.leases import inside
from tests.support.servers.redis_servers import REAL_KINDS, RedisServer

MEMBERS = int(os.environ.get("DIRECTORY_MEMBERS", "20000"))
FEW = 2_000  # on the second kind of server
NODES = 5
IN_A_ROOM = 10
AT_ONCE = 500
SECONDS = 4.0
# Every 2 s a renewal of the lease, which also looks at the leases of others (8 calls, those inside the script counted),
# and a canary of each node's broker.
CALLS_PER_NODE_S = 6.0


@asynccontextmanager
async def crowded(kind: str, directory: Path, members: int) -> AsyncIterator[Any]:
    """Run a cluster of that many members with a name each; yields a client of its server."""
    await asyncio.to_thread(directory.mkdir)
    async with RedisServer(kind, directory) as server, AsyncExitStack() as stack:
        cluster = RedisTestCluster(server, stack, REAL)
        nodes = [await cluster.node(f"n{number}") for number in range(NODES)]
        for node in nodes:  # one after the other: all renew their leases meanwhile
            await crowd(node, members // NODES)
        async with cluster.client() as client:
            yield client


async def crowd(node: FakeNode, count: int) -> None:
    for start in range(0, count, AT_ONCE):
        serials = range(start, min(start + AT_ONCE, count))
        rooms = {serial: f"chat:{node.node_id} {serial // IN_A_ROOM}" for serial in serials}
        await asyncio.gather(*(node.directory.enter(rooms[serial], serial, f"user{serial}") for serial in serials))
        await asyncio.gather(
            *(node.directory.claim("messaging:names", f"{node.node_id}{serial}", serial) for serial in serials)
        )


async def calls(client: Any) -> int:
    """Count commands so far, without those of this test."""
    stats = await client.info("commandstats")
    return sum(each["calls"] for name, each in stats.items() if name not in ("cmdstat_info", "cmdstat_ping"))


async def test_an_idle_cluster_costs_by_the_node_and_not_by_the_member(tmp_path: Path) -> None:
    sizes = [(kind, size) for kind in REAL_KINDS for size in (NODES, MEMBERS if kind == REAL_KINDS[0] else FEW)]
    async with AsyncExitStack() as stack:
        clients = {
            (kind, size): await stack.enter_async_context(crowded(kind, tmp_path / f"{kind}-{size}", size))
            for kind, size in sizes
        }
        before = {each: (await calls(client), monotonic()) for each, client in clients.items()}
        await asyncio.sleep(SECONDS)  # the commands during this time are measured, on a busy machine a longer one
        rates = {}
        for each, client in clients.items():
            count, began_s = before[each]
            rates[each] = (await calls(client) - count) / (monotonic() - began_s)
        memory = {each: (await client.info("memory"))["used_memory"] for each, client in clients.items()}
    for kind in REAL_KINDS:
        empty, full = ((kind, size) for kind_, size in sizes if kind_ == kind)
        bytes_each = (memory[full] - memory[empty]) / full[1]
        print(
            f"{kind}, {NODES} nodes: {rates[empty]:.1f} calls/s with {empty[1]} members, {rates[full]:.1f} with "
            f"{full[1]:,} and as many names; {bytes_each:.0f} bytes each"
        )
        assert rates[full] <= CALLS_PER_NODE_S * NODES
        assert rates[full] <= 1.2 * rates[empty] + 1


async def test_an_idle_directory_looks_at_the_leases_with_its_renewals(tmp_path: Path) -> None:
    async with RedisServer(REAL_KINDS[0], tmp_path) as server, AsyncExitStack() as stack:
        cluster = RedisTestCluster(server, stack, REAL)
        nodes = [await cluster.node(f"n{number}") for number in range(2)]
        async with cluster.client() as client:
            scripts = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
            renewals = [inside(node)._lease.renewals for node in nodes]
            looked_at = [inside(node)._reaper._looked_at for node in nodes]
            await asyncio.sleep(SECONDS)  # as above
            renewed = sum(inside(node)._lease.renewals for node in nodes) - sum(renewals)
            assert renewed >= 2
            assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] - scripts <= renewed + 2
        assert all(inside(node)._reaper._looked_at > at for node, at in zip(nodes, looked_at, strict=True))


async def test_subscribing_to_a_channel_with_presence_and_counting_it_read_no_list(tmp_path: Path) -> None:
    async with RedisServer(REAL_KINDS[0], tmp_path) as server, Redis.from_url(server.url) as client:
        registry = ServiceRegistry([PubSubService(channels=[{"match": "*", "presence": True}])])
        async with running_node(registry, settings=Settings(redis_url=server.url)) as node:
            clients = [MemoryClient(node, registry, f"user{number}", deadline_s=10.0) for number in range(20)]
            await clients[0].call("pubsub", "subscribe", channel="room")
            before = await client.info("commandstats")
            for each in clients[1:]:
                await each.call("pubsub", "subscribe", channel="room")
            expected = {"members": len(clients), "connections": len(clients)}
            assert await clients[0].call("pubsub", "presenceStats", channel="room") == expected
            after = await client.info("commandstats")
            assert len((await clients[0].call("pubsub", "presence", channel="room"))["members"]) == len(clients)
            for each in clients:
                each.disconnect()
    for name in ("cmdstat_hgetall", "cmdstat_hscan"):
        assert after.get(name, {}).get("calls", 0) == before.get(name, {}).get("calls", 0), name


async def test_a_crowd_that_enters_one_roster_shares_its_lists(tmp_path: Path) -> None:
    async with RedisServer(REAL_KINDS[0], tmp_path) as server, AsyncExitStack() as stack:
        cluster = RedisTestCluster(server, stack, REAL)
        node = await cluster.node("a")
        await node.enter("chat:room", 0, "first")
        async with cluster.client() as client:
            await asyncio.gather(*(node.enter("chat:room", serial, f"user{serial}") for serial in range(1, 1001)))
            lists = (await client.info("commandstats"))["cmdstat_hgetall"]["calls"]
    assert lists < 100, "each asked for its own"
