"""JsTokens: a client of clients/js with subscription tokens, in a process of Node, and what its application hears."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.clients.js_crowd import JS
from tests.support.clients.numbers import DEADLINE_S
from tests.support.processes.tools import program

__all__ = ["JsTokens", "running_js_tokens"]


class JsTokens:
    """events: all so far, in order."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[dict[str, Any]] = []
        self._changed = asyncio.Condition()

    async def read(self) -> None:
        """Collect events until the process ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            async with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()

    def subscribe(self, channel: str, *gives: float | str) -> None:
        """Subscribe to a channel, with a function that gives these tokens (see clients/js/support/tokens.js)."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"subscribe": channel, "gives": gives}).encode() + b"\n")

    def of(self, kind: str, channel: str | None = None) -> list[dict[str, Any]]:
        """Return the events of a kind, of one channel or all."""
        return [each for each in self.events if each["event"] == kind and channel in (None, each.get("channel"))]

    def heard(self, channel: str) -> list[Any]:
        """Return the messages of a channel."""
        return [each["message"] for each in self.of("message", channel)]

    async def wait_for(self, kind: str, channel: str | None = None, *, count: int = 1) -> dict[str, Any]:
        """Wait for the event of that number. Raises AssertionError: too late."""
        try:
            async with asyncio.timeout(DEADLINE_S), self._changed:
                await self._changed.wait_for(lambda: len(self.of(kind, channel)) >= count)
        except TimeoutError:
            raise AssertionError(f"no {kind} of {channel}: {self.events[-20:]}") from None
        return self.of(kind, channel)[count - 1]

    async def close(self) -> int:
        """Close the client and return the exit code: nothing else ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(DEADLINE_S):
            return await self._process.wait()


@asynccontextmanager
async def running_js_tokens(url: str, secret: str) -> AsyncIterator[JsTokens]:
    """Run one until the block ends; it is connected."""
    process = await asyncio.create_subprocess_exec(
        program("node"),
        str(JS / "support" / "tokens.js"),
        url,
        secret,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    client = JsTokens(process)
    reading = asyncio.ensure_future(client.read())
    try:
        await client.wait_for("open")
        yield client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
