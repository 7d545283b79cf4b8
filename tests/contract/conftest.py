"""Every kind of server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fakes.directories import TestCluster, open_cluster
from tests.support.scenarios.directory_owners import ROOM
from tests.support.servers.redis_servers import KINDS, REAL_KINDS, AnyServer, RedisServer, start_server


@pytest.fixture(params=KINDS)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyServer]:
    async with start_server(request.param, tmp_path) as running:
        yield running


@pytest.fixture(params=REAL_KINDS)
async def redis(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(request.param, tmp_path) as server:
        yield server


@pytest.fixture(params=("memory", "spread", "cluster", *KINDS))
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TestCluster]:
    async with open_cluster(request.param, tmp_path) as opened:
        await opened.listen(ROOM, "silent:room", "cursors:doc")
        yield opened
