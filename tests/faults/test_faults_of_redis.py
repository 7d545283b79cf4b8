"""Every other row of the table of promises with one Redis, once, in one lab."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.fault_lab.in_ci import ROWS_OF_REDIS, check, small_lab
from tests.fault_lab.lab import Lab
from tests.fault_lab.trial import Fault

pytestmark = [
    pytest.mark.needs("redis-server", "nginx", "gcc"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    async with small_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.key) for fault in ROWS_OF_REDIS])
async def test_promises_hold_for_a_fault(lab: Lab, fault: Fault) -> None:
    await check(lab, fault)
