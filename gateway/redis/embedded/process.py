"""ServerProcess: a Redis or Valkey server as a child process on a Unix socket, which ends with this process."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Self

import structlog

from snorky.gateway.redis.connection.resp import ConnectionLost, DialError, dial
from snorky.gateway.redis.target import target_from_url
from snorky.gateway.socket_directory import NoDirectory, SocketDirectory

__all__ = ["ProcessFailed", "ServerProcess"]

START_TIMEOUT_S = 5.0  # takes 0.05 s; a loaded machine may take longer
STOP_TIMEOUT_S = 2.0

# Runs in the child process before the server: with PR_SET_PDEATHSIG (1) the kernel kills it when the thread that
# started it ends for any reason. Not done by preexec_fn: in a process with threads any lock may be held after fork.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

_log = structlog.get_logger("snorky.redis")


class ProcessFailed(Exception):
    """The server could not be started. The text contains the reason, from the server's log if there is one."""


class ServerProcess:
    """A running server. Made by `start`; `stop` ends it and removes its directory."""

    def __init__(self, process: asyncio.subprocess.Process, directory: SocketDirectory) -> None:
        self.pid = process.pid
        self.url = f"unix://{directory.path / 'socket'}?db=0"
        self._process = process
        self._directory = directory
        self._watcher = asyncio.get_running_loop().create_task(self._watch(), name="embedded-redis")

    @classmethod
    async def start(cls, program: Path) -> Self:
        """Start a server; returns when it answers. Raises ProcessFailed."""
        try:
            place = SocketDirectory("snorky-redis-")
        except NoDirectory as error:
            raise ProcessFailed(str(error)) from error
        directory = place.path
        log_path = directory / "log"
        argv = [
            *(str(program), "--port", "0", "--unixsocket", str(directory / "socket"), "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--dir", str(directory), "--daemonize", "no"),
        ]
        if sys.platform == "linux" and sys.executable:
            argv = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *argv]
        try:
            with open(log_path, "wb") as log:  # noqa: ASYNC230 - a new file in a fresh directory
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C must reach only the gateway, which stops the server last
                )
        except OSError as error:
            place.remove()
            raise ProcessFailed(str(error)) from error
        server = cls(process, place)
        try:
            await server._await_answer(log_path)
        except BaseException:
            await server.stop()
            raise
        return server

    async def stop(self) -> None:
        """End the server and remove its directory. Idempotent."""
        self._watcher.cancel()
        try:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
            await asyncio.gather(self._watcher, return_exceptions=True)
        finally:
            if self._process.returncode is None:  # this call was cancelled
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            self._directory.remove()

    async def _watch(self) -> None:
        status = await self._process.wait()
        _log.error("embedded server ended", status=status, pid=self.pid)

    async def _await_answer(self, log_path: Path) -> None:
        target = target_from_url(self.url)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_TIMEOUT_S
        while True:
            try:
                wire = await dial(target, name="snorky:start", timeout_s=max(0.05, deadline - loop.time()))
            except DialError as error:
                if self._watcher.done():
                    raise ProcessFailed(f"it exited at once: {_last_line(log_path)}") from error
                if loop.time() >= deadline:
                    raise ProcessFailed(f"no answer within {START_TIMEOUT_S:g} s: {_last_line(log_path)}") from error
                await asyncio.sleep(0.005)
            else:
                wire.close(ConnectionLost("it answers"))
                await wire.wait_closed()
                return


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "its log is empty")
