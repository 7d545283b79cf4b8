"""Every kind of server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.servers.redis_servers import KINDS, AnyServer, start_server


@pytest.fixture(params=KINDS)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyServer]:
    async with start_server(request.param, tmp_path) as running:
        yield running
