"""Load: controls the publisher process. Keeps its output until `take`."""

import asyncio
import json
import sys
from types import TracebackType
from typing import Any, Self

import msgspec

from snorky.gateway.protocol.publication import Position
from tests.fault_lab.journal import Acked, Uncertain
from tests.fault_lab.publisher import Order
from tests.support.processes.nodes import clean_environment
from tests.support.processes.tools import ROOT

__all__ = ["Load"]

_LINE_MAX_BYTES = 1 << 20


class Load:
    """Numbered messages, from another process.

    acked, uncertain: since `take` was last called. latest: the last acknowledged number of each channel.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self.acked: list[Acked] = []
        self.uncertain: list[Uncertain] = []
        self.latest: dict[str, int] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._paused: asyncio.Future[dict[str, int]] | None = None

    async def __aenter__(self) -> Self:
        argv = [sys.executable, "-m", "tests.fault_lab.publisher", msgspec.json.encode(self._order).decode()]
        self._process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=clean_environment(),
            limit=_LINE_MAX_BYTES,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None and self._process.stdin is not None and self._reader is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        async for line in self._process.stdout:
            kind, *words = json.loads(line)
            if kind == "acked":
                channel, number, started_s, acked_s, position, attempts = words
                where = None if not position else Position.parse(position)
                self.latest[channel] = number
                self.acked.append(Acked(channel, number, started_s, acked_s, where, attempts))
            elif kind == "uncertain":
                self.uncertain.append(Uncertain(*words))
            elif kind == "paused" and self._paused is not None and not self._paused.done():
                self._paused.set_result(words[0])

    async def pause(self, within_s: float) -> dict[str, int]:
        """Let every channel end with an acknowledged number; returns these. Raises TimeoutError."""
        self._paused = asyncio.get_running_loop().create_future()
        self._tell("pause")
        try:
            async with asyncio.timeout(within_s):
                return await self._paused
        except TimeoutError:
            raise TimeoutError(f"channels without a fence: {self._silent()}") from None

    def _silent(self) -> str:
        """Return the channels without an acknowledgement for longest, and the last error of publishing."""
        last_s = {channel: 0.0 for channel in self._order.channels}
        last_s.update({one.channel: one.acked_s for one in self.acked})
        oldest = sorted(last_s, key=last_s.__getitem__)[:5]
        return f"oldest {oldest}; errors {sorted({one.error for one in self.uncertain[-50:]})[:3]}"

    def resume(self) -> None:
        """Resume publishing."""
        self._tell("resume")

    def take(self) -> tuple[list[Acked], list[Uncertain]]:
        """Return what was recorded since the last call."""
        taken: tuple[list[Any], list[Any]] = (self.acked, self.uncertain)
        self.acked, self.uncertain = [], []
        return taken

    def _tell(self, word: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
