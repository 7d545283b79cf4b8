"""Leases under faults: nodes killed and stalled, Redis frozen, emptied, full. Each guard has a test that needs it.

These tests run with a tenth of the promised timings; test_services_faults checks whole nodes with the promised ones.
"""

from collections.abc import AsyncIterator

import pytest

from snorky.gateway.redis import Timings
from tests.support.fakes.directories import FAST, RedisTestCluster, open_cluster
from tests.support.scenarios.leases import ROOMS
from tests.support.servers.redis_servers import REAL_KINDS
from tests.support.servers.shared import SharedServers


@pytest.fixture
def timings() -> Timings:
    return FAST


@pytest.fixture(params=REAL_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def cluster(kind: str, shared: SharedServers, timings: Timings) -> AsyncIterator[RedisTestCluster]:
    async with open_cluster(kind, shared, timings=timings) as opened:
        assert isinstance(opened, RedisTestCluster)
        await opened.listen(*ROOMS)
        yield opened
