"""Fixtures for several files of this folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.support.deploy.files import (
    make_secrets,
    redis_conf,
)
from tests.support.deploy.redis import INSPECTOR, ShippedRedis
from tests.support.processes.chromium import running_chromium
from tests.support.processes.nodes import RedisProcess
from tests.support.processes.tools import free_port


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """Share one among the tests of a file: see tests/support/processes/chromium.py."""
    async with running_chromium() as opened:
        yield opened


@pytest.fixture
async def shipped(tmp_path: Path) -> AsyncIterator[ShippedRedis]:
    port = free_port()
    secrets = make_secrets(tmp_path / "secrets", port)
    (secrets / "users.acl").chmod(0o600)
    with (secrets / "users.acl").open("a") as acl:
        acl.write(INSPECTOR)
    async with RedisProcess.running(tmp_path, conf=redis_conf(tmp_path, secrets, port), port=port):
        yield ShippedRedis(port, secrets)
