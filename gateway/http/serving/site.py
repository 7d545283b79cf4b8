"""Site: serves an aiohttp application on its sockets."""

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.http.serving.listen import BACKLOG, url_of
from snorky.gateway.http.websocket.front_door import FrontDoor
from snorky.gateway.http.websocket.handler import WebSocketHandler

__all__ = ["Site"]

SHUTDOWN_S: Final = 2.0  # for requests in progress; WebSockets are drained before
SETTLE_S: Final = 0.1  # for requests that a balancer is sending, on connections that it keeps
_PACE_S: Final = 0.01
LINGER_S: Final = 2.0  # to discard the rest of a body that is not needed, after the response

_log = logging.getLogger("snorky.http")


def _tell_faults_only(record: logging.LogRecord) -> bool:
    """Keep only our own errors: for errors of the peer, aiohttp logs a traceback that quotes the peer."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UnicodeEncodeError):  # aiohttp cannot quote an Expect header that is not UTF-8
        return not str(error.object).startswith("Unknown Expect")
    # invalid HTTP, a broken body, or a client that has gone
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionError)


_log.addFilter(_tell_faults_only)


class _Log(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's logger, which also counts the requests that aiohttp refuses before any handler runs."""

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
    """Serves an application. header_timeout_s: for the whole head of a request, and between two requests.

    refusals: counts invalid HTTP requests, and those with too long a line, such as a token that is too long.
    websockets: accepts handshakes for `/ws` without aiohttp, and counts connections when they are accepted; None = a
    private port, where neither is done.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        header_timeout_s: float,
        refusals: Refusals | None = None,
        websockets: WebSocketHandler | None = None,
    ) -> None:
        self._websockets = websockets
        self._header_timeout_s = header_timeout_s
        self._door: FrontDoor | None = None
        self._is_stopping = False
        app.on_response_prepare.append(self._end_connection)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_Log(_log, refusals),
            handle_signals=False,
            # aiohttp uses this timer also for connections that have not sent a complete head yet
            keepalive_timeout=header_timeout_s,
            lingering_time=LINGER_S,
            shutdown_timeout=SHUTDOWN_S,
        )
        self.urls: list[str] = []

    async def start(self, sockets: list[socket.socket]) -> None:
        """Serve on these listening sockets."""
        await self._runner.setup()
        if self._websockets is not None:
            self._door = self._open_door(self._websockets)
        for bound in sockets:
            if self._door is None:
                await web.SockSite(self._runner, bound, backlog=BACKLOG).start()
            else:
                await self._door.acceptor.listen(bound)
            self.urls.append(url_of(bound))

    async def start_unix(self, path: Path) -> None:
        """Serve on a Unix socket."""
        await self._runner.setup()
        await web.UnixSite(self._runner, path).start()

    async def stop(self) -> None:
        """Stop listening, answer requests that are on their way, and end the remaining ones. Idempotent.

        A balancer that cannot connect sends the request to another node. It may not repeat a request that it has sent.
        """
        self._is_stopping = True
        if self._door is None:
            await asyncio.sleep(0)  # accepts a connection that waits in the backlog: closing it resets it
        else:
            await self._door.acceptor.stop()
        for each in list(self._runner.sites):
            await each.stop()
        await asyncio.sleep(0)  # aiohttp's server takes over what was accepted
        clock = asyncio.get_running_loop().time
        settled_s = clock() + SETTLE_S
        while self._has_connections() and clock() < settled_s:  # noqa: ASYNC110 - once, at its end
            await asyncio.sleep(_PACE_S)
        if self._door is not None:
            await self._door.stop(SHUTDOWN_S)
        await self._runner.cleanup()

    def _open_door(self, websockets: WebSocketHandler) -> FrontDoor:
        server, gate = self._runner.server, websockets.endpoint.gate
        if server is None:
            raise RuntimeError("the runner is not set up")
        lost = server.connection_lost

        def connection_lost(handler: RequestHandler, exc: BaseException | None = None) -> None:
            gate.leave(handler)
            lost(handler, exc)

        # aiohttp has no hook for this; it calls it for every connection, including those that `take_over` removes
        server.connection_lost = connection_lost  # type: ignore[method-assign]
        return FrontDoor(websockets, server, header_timeout_s=self._header_timeout_s, path="/ws")

    def _has_connections(self) -> bool:
        server, door = self._runner.server, self._door
        return bool(server is not None and server.connections) or (door is not None and door.connections > 0)

    async def _end_connection(self, _request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Tell the client, while the site stops, that this response is the last of its connection."""
        if self._is_stopping:
            response.force_close()
            response.headers["Connection"] = "close"  # aiohttp has decided on its own header before
