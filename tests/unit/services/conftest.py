"""Fixtures that several files of this folder use."""

from collections.abc import AsyncIterator

import pytest

from snorky.services.datasync import DataSyncService
from tests.support.fakes.memory_cluster import town
from tests.support.scenarios.datasync_stage import DEALERS, Stage


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with town(3, lambda: [DataSyncService(dealers=DEALERS)]) as nodes:
        yield Stage(nodes)
