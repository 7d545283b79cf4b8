"""The signals of the supervisor to a worker that is still being started; the worker is no process here."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from snorky.gateway.config.settings import Settings
from snorky.gateway.runtime.supervisor import Supervisor

WITHIN_S = 30.0


class Worker:
    """A process that ends at its first signal."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self._ended = asyncio.Event()

    def send_signal(self, number: int) -> None:
        self.signals.append(number)
        self._ended.set()

    async def wait(self) -> int:
        async with asyncio.timeout(WITHIN_S):
            await self._ended.wait()
        return 0


async def test_a_worker_being_created_at_a_hang_up_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have read the old settings already: the supervisor can be slower than its child."""
    supervisor = Supervisor(Settings(), 1, [])
    worker = Worker()
    path = tmp_path / "door"

    async def create(*_argv: str, **_options: Any) -> Worker:
        supervisor._request_reload()
        await asyncio.sleep(0.3)  # meanwhile the request is looked at
        path.touch()
        return worker

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create)
    forwarding = asyncio.create_task(supervisor._forward_reloads())
    try:
        await supervisor._run_one("worker-1.1", path)
    finally:
        forwarding.cancel()
    assert worker.signals == [signal.SIGHUP]
