"""Real processes under tests: gateway nodes and Redis servers, on free loopback ports, ended by their own pid.

    async with NodeProcess.running(env) as node: ...     # killed at the end, whatever happened
    node.kill() / terminate() / freeze() / thaw()

Rules:
- Nodes and commands of the gateway are forked where they can be: see fork_server.py.
- A process prints when it is ready; tests do not sleep.
- Its output is kept: `log` is the first thing to read when a test fails, and part of every error here.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from tests.support.processes.fork_server import ForkedProcess, ForkServers, die_with_parent
from tests.support.processes.tools import ROOT, free_port, program

__all__ = ["GATEWAY", "NodeProcess", "Process", "RedisProcess", "clean_environment"]

GATEWAY = (sys.executable, "-m", "snorky.gateway.cli")  # what the command `snorky` runs
_LOG_MAX_LINES = 10_000
_LISTENS = r"\bpublic http.*\bprivate http.*"  # the line with the ports: everything is ready, or everything but Redis


def clean_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without a gateway's settings, and with `env`: its PYTHONPATH before ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SNORKY_")}
    made = {**kept, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
    paths = [given["PYTHONPATH"] for given in (env or {}, kept) if given.get("PYTHONPATH")]
    return {**made, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))} if paths else made


@cache
def _fork_servers() -> ForkServers:
    return ForkServers(GATEWAY, clean_environment(), ROOT)


class Process:
    """A child with its output kept. Made in the main thread: the kernel ties a child's life to its maker's thread."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, ready: str = ""
    ) -> None:
        self.argv = list(argv)
        self._lines: list[str] = []
        self._ready = re.compile(ready) if ready else None
        self._ready_match: re.Match[str] | None = None
        self._settled = threading.Event()  # ready, or its output has ended
        self._process = self._start(clean_environment(env), cwd or ROOT)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _start(self, env: dict[str, str], cwd: Path) -> subprocess.Popen[str] | ForkedProcess:
        is_gateway = tuple(self.argv[: len(GATEWAY)]) == GATEWAY
        forked = _fork_servers().fork(self.argv, env, cwd) if is_gateway else None
        return forked or subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            text=True,
            errors="replace",
            preexec_fn=die_with_parent,
        )

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if len(self._lines) < _LOG_MAX_LINES:
                self._lines.append(line)
            if self._ready is not None and self._ready_match is None:
                self._ready_match = self._ready.search(line)
                if self._ready_match is not None:
                    self._settled.set()
        self._settled.set()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """Its output, both streams."""
        return "".join(self._lines)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    async def wait_ready(self, within_s: float = 20.0) -> re.Match[str]:
        """Wait for the ready line. Raises AssertionError with the log: it ended, or the time did."""
        await asyncio.to_thread(self._settled.wait, within_s)
        match = self._ready_match
        assert match is not None, f"{self.argv} was not ready within {within_s} s:\n{self.log}"
        return match

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing to a process that has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash does: SIGKILL."""
        self.signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end: SIGTERM."""
        self.signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop it: SIGSTOP. The kernel still accepts its connections."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume it: SIGCONT."""
        self.signal(signal.SIGCONT)

    async def wait(self, within_s: float = 30.0) -> int:
        """Wait for its end and return its exit code. `log` is then complete, unless children still write to it."""
        code = await asyncio.to_thread(self._process.wait, within_s)
        await asyncio.to_thread(self._reader.join, 5.0)
        return code

    async def close(self) -> None:
        """End it if it runs, and close its output."""
        if self.is_running:
            self.kill()
        await self.wait()
        await asyncio.to_thread(self._reader.join, 30.0)  # workers whose supervisor was killed drain first
        assert self._process.stdout is not None
        self._process.stdout.close()


class NodeProcess(Process):
    """One gateway node: `snorky serve` as a process, on ports that it chose itself unless env names them."""

    def __init__(
        self,
        env: Mapping[str, str] | None = None,
        *,
        argv: Sequence[str] = (*GATEWAY, "serve"),
        cwd: Path | None = None,
    ) -> None:
        ports = {"SNORKY_PUBLIC__PORT": "0", "SNORKY_PRIVATE__PORT": "0"}
        super().__init__(argv, env={**ports, **(env or {})}, cwd=cwd, ready=_LISTENS)
        self.public_port = self.private_port = 0

    @classmethod
    @asynccontextmanager
    async def running(
        cls, env: Mapping[str, str] | None = None, *, argv: Sequence[str] = (*GATEWAY, "serve"), cwd: Path | None = None
    ) -> AsyncIterator["NodeProcess"]:
        """Run one until the block ends."""
        node = cls(env, argv=argv, cwd=cwd)
        try:
            await node.wait_ready()
            yield node
        finally:
            await node.close()

    async def wait_ready(self, within_s: float = 20.0) -> re.Match[str]:
        match = await super().wait_ready(within_s)
        for role in ("public", "private"):
            told = re.search(rf"\b{role}\s+(http\S+)", match[0])
            assert told is not None, match[0]
            setattr(self, f"{role}_port", urlsplit(told[1]).port)
        return match

    @property
    def websocket_url(self) -> str:
        return f"ws://127.0.0.1:{self.public_port}/ws"

    async def status(self, path: str, *, timeout_s: float = 3.0) -> int:
        """Get a path of the private port and return the HTTP status; 0 if there is no answer."""
        return (await self.ask(path, timeout_s=timeout_s))[0]

    async def ask(self, path: str, *, timeout_s: float = 3.0) -> tuple[int, str]:
        """Get a path of the private port; returns status and body, (0, "") if there is no answer."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            try:
                async with session.get(f"http://127.0.0.1:{self.private_port}{path}") as response:
                    return response.status, await response.text()
            except (TimeoutError, aiohttp.ClientError):
                return 0, ""

    async def metric(self, name: str) -> float:
        """Sum a metric over its labels."""
        status, text = await self.ask("/metrics", timeout_s=10.0)
        assert status == 200, status
        samples = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, samples))


class RedisProcess(Process):
    """One redis-server of the test's own, without persistence unless `conf` is a configuration."""

    def __init__(self, directory: Path, *, conf: Path | None = None, port: int | None = None) -> None:
        self.port = port or free_port()
        plain = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", str(directory)]
        argv = [program("redis-server"), *([str(conf)] if conf else plain)]
        super().__init__(argv, cwd=directory, ready="Ready to accept connections")

    @classmethod
    @asynccontextmanager
    async def running(
        cls, directory: Path, *, conf: Path | None = None, port: int | None = None
    ) -> AsyncIterator["RedisProcess"]:
        """Run one until the block ends."""
        redis = cls(directory, conf=conf, port=port)
        try:
            await redis.wait_ready()
            yield redis
        finally:
            await redis.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"
