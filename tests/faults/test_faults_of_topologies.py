"""Every row of the table of promises with several Redis servers, once: one lab for each topology."""

import asyncio
from pathlib import Path

import pytest

from tests.fault_lab.faults import ALL
from tests.fault_lab.in_ci import check, small_lab
from tests.fault_lab.lab import TOPOLOGIES

pytestmark = pytest.mark.needs("redis-server", "nginx", "gcc")


async def test_promises_hold_for_a_fault_of_several_servers(tmp_path: Path) -> None:
    # concurrently: servers need time to find each other
    async with asyncio.TaskGroup() as group:
        for topology in TOPOLOGIES:
            (tmp_path / topology).mkdir()
            group.create_task(check_all(topology, tmp_path / topology))


async def check_all(topology: str, directory: Path) -> None:
    async with small_lab(directory, topology) as lab:
        for fault in ALL.values():
            if fault.topology == topology:
                await check(lab, fault)
