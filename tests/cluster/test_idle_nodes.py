"""Cost of nodes without clients in Redis."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from snorky.gateway import ServiceRegistry
from snorky.gateway.config.settings import Settings
from snorky.gateway.runtime.node import running_node
from snorky.services.pubsub import PubSubService
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import REAL_KINDS, RedisServer

SECONDS = 10.0
STARTS = 6
COMMANDS_PER_NODE_S = 3.0  # as documented, in scripts not counted


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_a_node_without_clients_sends_at_most_three_commands_a_second(kind: str, tmp_path: Path) -> None:
    nodes = 2
    async with RedisServer(kind, tmp_path) as server, AsyncExitStack() as stack, Redis.from_url(server.url) as client:
        for _ in range(nodes):
            registry = ServiceRegistry([PubSubService()])
            await stack.enter_async_context(running_node(registry, settings=Settings(redis_url=server.url)))

        async def rests() -> bool:
            return len([each for each in await client.client_list() if "b" in each["flags"]]) == nodes

        await eventually(rests, within_s=30, what="the nodes wait for orders")
        sent: Counter[str] = Counter()
        async with client.monitor() as monitor:
            try:
                async with asyncio.timeout(SECONDS):
                    while True:
                        said = await monitor.next_command()
                        if said["client_type"] != "lua":
                            sent[said["command"].split()[0].lower()] += 1
            except TimeoutError:
                pass
        assert sent["evalsha"] and sent["xread"], sent
        # the start of a node on a busy machine may end meanwhile
        assert sent.total() <= COMMANDS_PER_NODE_S * nodes * SECONDS + STARTS, sent
