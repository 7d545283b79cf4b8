"""Fixtures that several files of this folder use."""

from collections.abc import AsyncIterator

import pytest

from tests.support.fakes.memory_cluster import town
from tests.support.scenarios.history_stage import Notes, Stage


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with town(3, lambda: [Notes()]) as nodes:
        yield Stage(nodes)
