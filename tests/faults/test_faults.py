"""Every row of the table of promises once, with a small load: one lab for each topology.

`make faults` runs the same rows with the promised load and prints their table; LAB_SEED sets another seed.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fault_lab.campaign import run_fault
from tests.fault_lab.faults import ALL
from tests.fault_lab.lab import TOPOLOGIES, Lab, running_lab
from tests.fault_lab.plan import Plan
from tests.fault_lab.table import render
from tests.fault_lab.trial import Fault

PLAN = replace(
    Plan(seed=int(os.environ.get("LAB_SEED", "1"))).small(), nodes=3, clients=30, has_balancer=True, drain_grace_s=3.0
)
ON_ONE_REDIS = [fault for fault in ALL.values() if fault.topology == "single" and fault.is_in_ci]

pytestmark = [
    pytest.mark.needs("redis-server", "nginx", "gcc"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    async with running_lab(PLAN, tmp_path_factory.mktemp("lab")) as running:
        yield running


async def hold(lab: Lab, fault: Fault) -> None:
    outcome = await run_fault(lab, fault)
    print(render([outcome]))
    assert not outcome.broken, render([outcome])


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.key) for fault in ON_ONE_REDIS])
async def test_promises_hold_for_a_fault(lab: Lab, fault: Fault) -> None:
    await hold(lab, fault)


async def test_promises_hold_for_a_fault_of_several_servers(tmp_path: Path) -> None:
    # concurrently: servers need time to find each other
    async with asyncio.TaskGroup() as group:
        for topology in TOPOLOGIES:
            (tmp_path / topology).mkdir()
            group.create_task(hold_all(topology, tmp_path / topology))


async def hold_all(topology: str, directory: Path) -> None:
    async with running_lab(PLAN, directory, topology) as lab:
        for fault in ALL.values():
            if fault.topology == topology:
                await hold(lab, fault)
