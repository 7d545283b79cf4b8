"""The real centrifuge-js of npm, in Node: some clients in one process, which reports each of their events."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from tests.support.processes.tools import ROOT, eventually, program

__all__ = ["FOLDER", "CentrifugeJS", "centrifuge_js", "needs_centrifuge_js"]

FOLDER: Final = ROOT / "tests" / "centrifuge_js"
DEADLINE_S: Final = 60.0

needs_centrifuge_js = pytest.mark.skipif(
    not (FOLDER / "node_modules" / "centrifuge").exists(),
    reason="needs centrifuge-js: cd tests/centrifuge_js && npm install --no-package-lock",
)


class CentrifugeJS:
    """The clients. events: all that they reported, in order."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.events: list[dict[str, Any]] = []
        self._process = process
        self._reader = asyncio.create_task(self._read())

    def of(self, kind: str, client: int | None = None) -> list[dict[str, Any]]:
        """Return the events of a kind, of all clients or of one."""
        return [each for each in self.events if each["kind"] == kind and client in (None, each.get("client"))]

    async def until(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for this many events of a kind; returns them."""

        async def are_there() -> bool:
            assert self._process.returncode is None, self.events[-5:]
            return len(self.of(kind)) >= count

        try:
            await eventually(are_there, within_s=DEADLINE_S, what=f"{count} times {kind}")
        except AssertionError as error:
            error.add_note(f"before: {self.events[-10:]}")
            raise
        return self.of(kind)

    async def call(self, name: str, **about: Any) -> Any:
        """Let the first client do something; returns the result. Raises AssertionError: the code of the error."""
        assert self._process.stdin is not None
        before = len(self.of("result"))
        self._process.stdin.write(json.dumps({"call": name, **about}).encode() + b"\n")
        result = (await self.until("result", before + 1))[-1]
        assert "error" not in result, result
        return result.get("result")

    async def close(self) -> None:
        """End the process."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.events.append(json.loads(line))


@asynccontextmanager
async def centrifuge_js(
    url: str, *, count: int = 1, form: str = "json", **settings: Any
) -> AsyncIterator[CentrifugeJS]:
    """Run clients. url: of the WebSocket. settings: see clients.js."""
    asked = json.dumps({"url": url, "count": count, "form": form, **settings})
    process = await asyncio.create_subprocess_exec(
        program("node"),
        "clients.js",
        asked,
        cwd=FOLDER,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    clients = CentrifugeJS(process)
    try:
        yield clients
    finally:
        await clients.close()
