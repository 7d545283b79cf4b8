"""JsCrowd: clients of clients/js in one process of Node, each recovering a channel of numbers."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import reduce
from operator import add
from typing import Any

from tests.support.clients.numbers import CHANNELS, DEADLINE_S, Tally, tally
from tests.support.processes.tools import ROOT, eventually, program

__all__ = ["JS", "JsCrowd", "running_js_crowd"]

JS = ROOT / "clients" / "js"
_LINE_MAX_BYTES = 1 << 26  # a report has everything that every client received


class JsCrowd:
    """Reports come in order. closes: of connections, in order. tokens: that they have asked for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.closes: list[dict[str, Any]] = []
        self.tokens = 0

    async def event(self, kind: str) -> dict[str, Any]:
        """Wait for the next report of this kind. Raises AssertionError: they ended; TimeoutError: no report."""
        assert self._process.stdout is not None
        while True:
            async with asyncio.timeout(DEADLINE_S):
                line = await self._process.stdout.readline()
            assert line, f"the clients ended while {kind} was awaited"
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "close":
                self.closes.append(event)
            self.tokens += event["event"] == "token"
            if event["event"] == kind:
                return event

    async def ask(self, order: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """Send the process a command and wait for its result."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return await self.event(kind)

    async def report(self) -> dict[str, Any]:
        """Request a report of received messages and of connections."""
        return await self.ask({"report": True}, "report")

    async def tally(self, count: int) -> Tally:
        """See Crowd."""
        report: dict[str, Any] = {}

        async def have_all_heard() -> bool:
            nonlocal report
            report = await self.report()
            return all(len(heard) >= count for heard in report["heard"])

        with suppress(AssertionError):
            await eventually(have_all_heard, within_s=DEADLINE_S, what="all clients have received everything")
        each = enumerate(zip(report["heard"], report["states"], strict=True))
        tallies = [tally(f"JavaScript client {number}, {state},", heard, count) for number, (heard, state) in each]
        return reduce(add, tallies, Tally(gaps=report["gaps"]))


@asynccontextmanager
async def running_js_crowd(url: str, *, count: int, encoding: str = "json", token: str = "") -> AsyncIterator[JsCrowd]:
    """Run clients until the block ends; all have subscribed when it begins. encoding: "json" or "msgpack"."""
    arguments = [
        str(JS / "support" / "crowd.js"),
        url,
        str(count),
        str(CHANNELS),
        encoding,
        *([token] if token else []),
    ]
    process = await asyncio.create_subprocess_exec(
        program("node"),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_MAX_BYTES,
    )
    try:
        crowd = JsCrowd(process)
        await crowd.event("subscribed")
        yield crowd
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
