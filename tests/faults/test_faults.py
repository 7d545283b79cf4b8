"""Every row of the table of promises once, with a small load: one lab for each topology.

`make faults` runs the same rows with the promised load and prints their table; LAB_SEED chooses another chance.
"""

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.lab.campaign import run_fault
from tests.faults.lab.faults import ALL
from tests.faults.lab.lab import Lab, running_lab
from tests.faults.lab.plan import Plan
from tests.faults.lab.soak import soak
from tests.faults.lab.table import render
from tests.faults.lab.trial import Fault

PLAN = replace(
    Plan(seed=int(os.environ.get("LAB_SEED", "1"))).small(), nodes=3, clients=30, has_balancer=True, drain_grace_s=3.0
)
SOAK_MINUTES = 0.35  # `make soak` has the hours

pytestmark = [
    pytest.mark.needs("redis-server", "nginx", "gcc"),
    pytest.mark.asyncio(loop_scope="module"),
]


def rows(topology: str) -> list[object]:
    chosen = [fault for fault in ALL.values() if fault.topology == topology and fault.is_in_ci]
    return [pytest.param(fault, id=fault.key) for fault in chosen]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    async with running_lab(PLAN, tmp_path_factory.mktemp("lab")) as running:
        yield running


async def hold(lab: Lab, fault: Fault) -> None:
    outcome = await run_fault(lab, fault)
    print(render([outcome]))
    assert not outcome.broken, render([outcome])


@pytest.mark.parametrize("fault", rows("single"))
async def test_what_is_promised_for_a_fault_is_kept(lab: Lab, fault: Fault) -> None:
    await hold(lab, fault)


@pytest.mark.parametrize("fault", rows("cluster"))
async def test_what_is_promised_on_a_cluster_is_kept(fault: Fault, tmp_path: Path) -> None:
    async with running_lab(PLAN, tmp_path, fault.topology) as lab:
        await hold(lab, fault)


@pytest.mark.parametrize("fault", rows("sentinel"))
async def test_what_is_promised_behind_sentinels_is_kept(fault: Fault, tmp_path: Path) -> None:
    async with running_lab(PLAN, tmp_path, fault.topology) as lab:
        await hold(lab, fault)


async def test_what_nodes_and_redis_hold_stays_flat_while_clients_come_and_go() -> None:
    growths, broken = await soak(PLAN, SOAK_MINUTES)
    assert not broken
    assert [growth for growth in growths if not growth.is_flat] == []
