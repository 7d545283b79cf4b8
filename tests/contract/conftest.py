"""Every kind of server."""

from collections.abc import AsyncIterator

import pytest

from tests.support.fakes.directories import TestCluster, open_cluster
from tests.support.scenarios.directory_owners import ROOM
from tests.support.servers.redis_servers import KINDS, REAL_KINDS, RedisServer
from tests.support.servers.shared import Servers, SharedServers


@pytest.fixture(params=KINDS)
async def server(request: pytest.FixtureRequest, shared: SharedServers) -> AsyncIterator[Servers]:
    async with shared.lend(request.param) as running:
        yield running


@pytest.fixture(params=REAL_KINDS)
async def redis(request: pytest.FixtureRequest, shared: SharedServers) -> AsyncIterator[RedisServer]:
    async with shared.lend(request.param) as server:
        assert isinstance(server, RedisServer)
        yield server


@pytest.fixture(params=("memory", "spread", "cluster", *KINDS))
async def cluster(request: pytest.FixtureRequest, shared: SharedServers) -> AsyncIterator[TestCluster]:
    async with open_cluster(request.param, shared) as opened:
        await opened.listen(ROOM, "silent:room", "cursors:doc")
        yield opened
