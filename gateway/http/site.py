"""Site: an aiohttp application on its sockets."""

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from gateway.http.accept_gate import AcceptGate
from gateway.http.listen import BACKLOG, url_of
from gateway.refusals import Refusals

__all__ = ["Site"]

SHUTDOWN_S: Final = 2.0  # for requests under way; WebSockets are drained before
LINGER_S: Final = 2.0  # for the rest of a body that nobody reads, after the answer

_log = logging.getLogger("snorky.http")


def _tell_faults_only(record: logging.LogRecord) -> bool:
    """Keep what is a fault of ours: aiohttp logs a traceback that quotes the peer for what is the peer's."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UnicodeEncodeError):  # it cannot quote an Expect header that is no UTF-8
        return not str(error.object).startswith("Unknown Expect")
    # no HTTP, a broken body, or somebody who has gone
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionError)


_log.addFilter(_tell_faults_only)


class _Log(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's logger, which also notes the requests that aiohttp refuses before any handler sees them."""

    def __init__(self, logger: logging.Logger, refusals: Refusals | None) -> None:
        super().__init__(logger)
        self._refusals = refusals

    def log(self, level: int, msg: object, *args: object, **others: Any) -> None:
        error = others.get("exc_info")
        if self._refusals is not None and isinstance(error, HttpProcessingError):
            reason = "too_long" if isinstance(error, LineTooLong) else "malformed"
            self._refusals.note("http", reason, address=str(args[0]) if args else None)
        super().log(level, msg, *args, **others)


class Site:
    """Serves an application. header_timeout_s: for a request's whole head, and between two requests.

    refusals: counts what is no HTTP request, or one with too long a line, such as a token that is too long.
    gate: counts connections when they are accepted; None = nobody does (a private port).
    """

    def __init__(
        self,
        app: web.Application,
        *,
        header_timeout_s: float,
        refusals: Refusals | None = None,
        gate: AcceptGate | None = None,
    ) -> None:
        self._gate = gate
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_Log(_log, refusals),
            handle_signals=False,
            # aiohttp's own timer for a connection that has sent no whole head yet is this one
            keepalive_timeout=header_timeout_s,
            lingering_time=LINGER_S,
            shutdown_timeout=SHUTDOWN_S,
        )
        self.urls: list[str] = []

    async def start(self, sockets: list[socket.socket]) -> None:
        """Serve on listening sockets."""
        await self._runner.setup()
        if self._gate is not None:
            _count_with(self._gate, self._runner)
        for bound in sockets:
            backlog = BACKLOG if self._gate is None else self._gate.backlog
            await web.SockSite(self._runner, bound, backlog=backlog).start()
            self.urls.append(url_of(bound))

    async def start_unix(self, path: Path) -> None:
        """Serve on a unix socket."""
        await self._runner.setup()
        await web.UnixSite(self._runner, path).start()

    async def stop(self) -> None:
        """Stop listening and end what aiohttp still serves. Idempotent."""
        await self._runner.cleanup()


def _count_with(gate: AcceptGate, runner: web.AppRunner) -> None:
    """Have aiohttp's server tell the gate of each connection: when it comes, and when it ends or is taken over."""
    server = runner.server
    if server is None:
        raise RuntimeError("the runner is not set up")
    made, lost = server.connection_made, server.connection_lost

    def connection_made(handler: RequestHandler, transport: asyncio.Transport) -> None:
        made(handler, transport)
        gate.enter(handler, transport)

    def connection_lost(handler: RequestHandler, exc: BaseException | None = None) -> None:
        gate.leave(handler)
        lost(handler, exc)

    # aiohttp has no hook for this; every connection calls both, also one that `take_over` takes away
    server.connection_made = connection_made  # type: ignore[method-assign]
    server.connection_lost = connection_lost  # type: ignore[method-assign]
