"""The rows that CI runs: each once, with a small load. Two labs share the rows of one Redis, and may run at once.

`make faults` runs all rows with the promised load and prints their table; LAB_SEED sets another seed.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tests.fault_lab.campaign import run_fault
from tests.fault_lab.faults import ALL
from tests.fault_lab.faults.clients import CLIENT_FAULTS
from tests.fault_lab.faults.machine import MACHINE_FAULTS
from tests.fault_lab.faults.nodes import NODE_FAULTS
from tests.fault_lab.lab import Lab, running_lab
from tests.fault_lab.plan import Plan
from tests.fault_lab.table import render
from tests.fault_lab.trial import Fault

__all__ = ["ROWS_OF_NODES", "ROWS_OF_REDIS", "check", "small_lab"]

PLAN = replace(
    Plan(seed=int(os.environ.get("LAB_SEED", "1"))).small(), nodes=3, clients=30, has_balancer=True, drain_grace_s=3.0
)
_ON_ONE_REDIS = [fault for fault in ALL.values() if fault.topology == "single" and fault.is_in_ci]
_OF_NODES = {fault.key for fault in (*NODE_FAULTS, *CLIENT_FAULTS, *MACHINE_FAULTS)}
ROWS_OF_NODES = [fault for fault in _ON_ONE_REDIS if fault.key in _OF_NODES]
ROWS_OF_REDIS = [fault for fault in _ON_ONE_REDIS if fault.key not in _OF_NODES]


@asynccontextmanager
async def small_lab(directory: Path, topology: str = "single") -> AsyncIterator[Lab]:
    """Run a lab with the small load until the block ends."""
    async with running_lab(PLAN, directory, topology) as lab:
        yield lab


async def check(lab: Lab, fault: Fault) -> None:
    """Run a row. Raises AssertionError with its line of the table: a promise is broken."""
    outcome = await run_fault(lab, fault)
    print(render([outcome]))
    assert not outcome.broken, render([outcome])
