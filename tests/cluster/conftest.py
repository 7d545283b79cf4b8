"""Fixtures for several files of this folder."""

import pytest

from tests.support.processes.nodes import RedisProcess


@pytest.fixture
async def redis(tmp_path):
    async with RedisProcess.running(tmp_path) as server:
        yield server
