"""The real sockjs-client of npm, in Node: one process per client, controlled line by line."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.processes.tools import ROOT, program

__all__ = ["FOLDER", "TRANSPORTS", "SockJSClient", "needs_sockjs_client", "sockjs_client"]

FOLDER = ROOT / "tests" / "sockjs"
TRANSPORTS = ("websocket", "xhr-streaming", "eventsource", "xhr-polling")  # all that it has in Node
DEADLINE_S = 20.0

needs_sockjs_client = pytest.mark.skipif(
    not (FOLDER / "node_modules" / "sockjs-client").exists(),
    reason="needs sockjs-client: cd tests/sockjs && npm install --no-package-lock",
)


class SockJSClient:
    """One client. Its reports come in order; `seen` records all."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.seen: list[dict[str, Any]] = []

    async def event(self, within_s: float = DEADLINE_S) -> dict[str, Any]:
        """Wait for its next report. Raises AssertionError: it ended, or is silent."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise AssertionError(f"nothing within {within_s} s; before: {self.seen[-5:]}") from None
        assert line, f"it ended; before: {self.seen[-5:]}"
        event: dict[str, Any] = json.loads(line)
        self.seen.append(event)
        return event

    async def opened(self, transport: str) -> None:
        """Wait until it is connected, by this transport and no other."""
        assert await self.event() == {"event": "open", "transport": transport}

    async def message(self) -> Any:
        """Wait for the next message: an envelope of ours."""
        event = await self.event()
        assert event["event"] == "message", event
        return json.loads(event["data"])

    async def closed(self, within_s: float = DEADLINE_S) -> tuple[int, str]:
        """Wait for the end; messages before it are skipped."""
        while (event := await self.event(within_s))["event"] != "close":
            pass
        return event["code"], event["reason"]

    def send(self, service: str, message: Any) -> None:
        """Send one envelope."""
        self._order({"send": {"service": service, "message": message}})

    def close(self) -> None:
        """Make it close the connection."""
        self._order({"close": True})

    async def call(self, service: str, command: str, call_id: int = 1, **params: Any) -> Any:
        """Send a request and wait for its answer; nothing else may come before."""
        self.send(service, {"command": command, "params": params, "callId": call_id})
        return (await self.message())["message"]

    def _order(self, order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")


@asynccontextmanager
async def sockjs_client(url: str, transport: str) -> AsyncIterator[SockJSClient]:
    """Run one until the block ends. url: http://HOST:PORT/sockjs."""
    process = await asyncio.create_subprocess_exec(
        program("node"),
        str(FOLDER / "client.js"),
        url,
        transport,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 22,
    )
    try:
        yield SockJSClient(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
