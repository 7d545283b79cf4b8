"""JSProcess: a program in Node that reports events as lines of JSON, and makes calls that it is asked for."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.support.processes.tools import eventually, program

__all__ = ["JSProcess", "running_js"]

DEADLINE_S: Final = 60.0


class JSProcess:
    """The program. events: all that it reported, in order; each has a `kind`, and perhaps the number of a `client`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.events: list[dict[str, Any]] = []
        self._process = process
        self._reader = asyncio.create_task(self._read())

    def of(self, kind: str, client: int | None = None) -> list[dict[str, Any]]:
        """Return the events of a kind, of all clients or of one."""
        return [each for each in self.events if each["kind"] == kind and client in (None, each.get("client"))]

    async def until(self, kind: str, count: int = 1, client: int | None = None) -> list[dict[str, Any]]:
        """Wait for this many events of a kind; returns them."""

        async def are_there() -> bool:
            assert self._process.returncode is None, self.events[-5:]
            return len(self.of(kind, client)) >= count

        try:
            await eventually(are_there, within_s=DEADLINE_S, what=f"{count} times {kind}")
        except AssertionError as error:
            error.add_note(f"before: {self.events[-10:]}")
            raise
        return self.of(kind, client)

    async def call(self, name: str, **about: Any) -> Any:
        """Let the program do something; returns the result. Raises AssertionError: the error."""
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
async def running_js(folder: Path, script: str, **settings: Any) -> AsyncIterator[JSProcess]:
    """Run a script of a folder, with settings as its argument, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        program("node"),
        script,
        json.dumps(settings),
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    clients = JSProcess(process)
    try:
        yield clients
    finally:
        await clients.close()
