"""Fixtures for several files of this folder."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.support.processes.nodes import RedisProcess
from tests.support.scenarios.protocol_nodes import Nodes
from tests.support.servers.redis_servers import RedisServer
from tests.support.servers.shared import SharedServers


@pytest.fixture
async def redis(tmp_path):
    async with RedisProcess.running(tmp_path) as server:
        yield server


@pytest.fixture
async def nodes(shared: SharedServers) -> AsyncIterator[Nodes]:
    """Nodes of this process, without any yet."""
    async with shared.lend("valkey") as server, AsyncExitStack() as stack:
        assert isinstance(server, RedisServer)
        yield Nodes(server.url, stack)
