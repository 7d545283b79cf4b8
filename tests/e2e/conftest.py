"""Fixtures for several files of this folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.deploy.files import (
    make_secrets,
    redis_conf,
)
from tests.support.deploy.redis import INSPECTOR, ShippedRedis
from tests.support.processes.nodes import RedisProcess
from tests.support.processes.tools import free_port


@pytest.fixture
async def shipped(tmp_path: Path) -> AsyncIterator[ShippedRedis]:
    port = free_port()
    secrets = make_secrets(tmp_path / "secrets", port)
    (secrets / "users.acl").chmod(0o600)
    with (secrets / "users.acl").open("a") as acl:
        acl.write(INSPECTOR)
    async with RedisProcess.running(tmp_path, conf=redis_conf(tmp_path, secrets, port), port=port):
        yield ShippedRedis(port, secrets)
