"""Nodes and Redis do not grow while clients connect and disconnect: five minutes in CI, hours in `make soak`.

Not among the faults: it checks no deadline, so it may share the machine with other tests.
"""

import os
from dataclasses import replace

import pytest

from tests.fault_lab.plan import Plan
from tests.fault_lab.soak import soak

# connections, not publications, are what must leave nothing behind: these need only be enough to notice a loss
PLAN = replace(Plan().small(), nodes=3, clients=30, rate_per_s=50.0, has_balancer=True)
MINUTES = 5.0 if os.environ.get("CI") else 0.5


@pytest.mark.needs("redis-server", "nginx", "gcc")
@pytest.mark.timeout(900)
async def test_nodes_and_redis_do_not_grow_while_clients_connect_and_disconnect() -> None:
    growths, broken = await soak(PLAN, MINUTES)
    assert not broken
    assert [growth for growth in growths if not growth.is_flat] == []
