"""Sockets: the WebSockets of a session. Only this module uses the library `websockets`.

Rules:
- Per line, one task connects, reads until the end and calls the session; another one writes, so that `send` never
  waits.
- The library answers the gateway's pings and sends its own, so the client notices when a gateway disappears. All
  received data counts, not only the pong: on a slow link a pong arrives long after the messages sent before it.
- For every end of a line the session's `on_end` is called once, with a close code of RFC 6455 7.1.5.
- A failed connection is logged as a warning if the reason differs from the previous one.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from snorky.client.realtime.line import Line
from snorky.client.realtime.refusal import Refusal, refusal_of
from snorky.client.realtime.token import TokenSource

if TYPE_CHECKING:
    from snorky.client.realtime.session import Session

__all__ = ["Sockets"]

ABNORMAL: Final = 1006
CLOSE_TIMEOUT_S: Final = 2.0
_SUBPROTOCOL: Final = "snorky.json"

_log = logging.getLogger("snorky.realtime")


class Sockets:
    """The Io of a session. options: further arguments of `websockets.connect`, `ssl` for example."""

    def __init__(
        self,
        url: str,
        tokens: TokenSource,
        *,
        connect_timeout_s: float,
        ping_interval_s: float,
        is_bearer_subprotocol: bool,
        options: dict[str, Any],
    ) -> None:
        try:
            from websockets.asyncio.client import ClientConnection, connect
        except ImportError as error:
            raise ImportError("Client needs websockets: pip install 'snorky-client[realtime]'") from error

        class Connect(connect):
            def process_redirect(self, exc: Exception) -> Exception:
                return exc  # gateways do not redirect, and the token would be sent to the new location

        class Heard(ClientConnection):
            """A connection that records when it last received data, including parts of a message."""

            heard_s = 0.0

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.heard_s = asyncio.get_running_loop().time()
                super().connection_made(transport)

            def data_received(self, data: bytes) -> None:
                self.heard_s = asyncio.get_running_loop().time()
                super().data_received(data)

        self._connect = Connect
        self._connection = Heard
        self._url = url
        self._tokens = tokens
        self._connect_timeout_s = connect_timeout_s
        self._ping_interval_s = ping_interval_s
        self._is_bearer_subprotocol = is_bearer_subprotocol
        self._options = options
        self._tasks: dict[Line, asyncio.Task[None]] = {}
        self._outboxes: dict[Line, asyncio.Queue[str | tuple[int, str]]] = {}
        self._last_refusal: Refusal | None = None
        self.session: Session  # set before the first dial

    def dial(self, line: Line, *, is_token_new: bool) -> None:
        """Open a connection for a line."""
        self._outboxes[line] = asyncio.Queue()  # bounded by the session's limits on calls and publishes
        task = asyncio.get_running_loop().create_task(self._run(line, is_token_new), name=f"snorky-{line.number}")
        self._tasks[line] = task
        task.add_done_callback(lambda _task: self._forget(line))

    def send(self, line: Line, text: str) -> None:
        """Send one message; never waits."""
        if line in self._outboxes:
            self._outboxes[line].put_nowait(text)

    def close(self, line: Line, code: int, reason: str) -> None:
        """Close a line after the messages queued before."""
        if line in self._outboxes:
            self._outboxes[line].put_nowait((code, reason))
        if not line.is_open and line in self._tasks:
            self._tasks[line].cancel()  # it is still connecting

    async def aclose(self) -> None:
        """Wait for the end of all lines, which the session has closed."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    def _forget(self, line: Line) -> None:
        del self._tasks[line]
        del self._outboxes[line]

    async def _run(self, line: Line, is_token_new: bool) -> None:
        code, reason, refusal = ABNORMAL, "", None
        try:
            socket = await self._open(is_token_new)
            if isinstance(socket, Refusal):
                refusal = socket
            else:
                code, reason = await self._live(line, socket)
        except Exception as error:  # the top of the task
            reason = f"{type(error).__name__}: {error}"
            _log.exception("Connection to %s", self._url)
        finally:
            self.session.on_end(line, code, reason, refusal)

    async def _open(self, is_token_new: bool) -> Any:
        """Try once to connect; return the socket or the Refusal."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                token = await self._tokens.get(is_new=is_token_new)
        except Exception as error:  # the program's function may raise anything, and succeed the next time
            _log.exception("No token for %s", self._url)
            return Refusal(f"no token: {type(error).__name__}: {error}")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return await self._connect(self._url, **self._arguments(token))
        except Exception as error:  # also for arguments that the library does not accept
            refusal = refusal_of(error)
            is_news = self._last_refusal is None or self._last_refusal.text != refusal.text
            _log.log(logging.WARNING if is_news else logging.DEBUG, "No connection to %s: %s", self._url, refusal.text)
            self._last_refusal = refusal
            return refusal

    async def _live(self, line: Line, socket: Any) -> tuple[int, str]:
        from websockets.exceptions import ConnectionClosed

        self._last_refusal = None
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._write(line, socket)), loop.create_task(self._watch(socket))]
        try:
            self.session.on_open(line)
            while True:
                self.session.on_text(line, await socket.recv())
        except ConnectionClosed:
            return socket.close_code or ABNORMAL, socket.close_reason or ""
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await socket.close()

    async def _watch(self, socket: Any) -> None:
        """Abort a connection on which nothing arrived for two ping intervals."""
        loop, patience_s = asyncio.get_running_loop(), 2 * self._ping_interval_s
        while (left_s := socket.heard_s + patience_s - loop.time()) > 0:  # noqa: ASYNC110 - waits for time, not an event
            await asyncio.sleep(left_s)
        _log.info("Nothing came from %s for %g s", self._url, patience_s)
        socket.transport.abort()  # the reader then ends the line

    async def _write(self, line: Line, socket: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        outbox = self._outboxes[line]
        try:
            while True:
                item = await outbox.get()
                if isinstance(item, tuple):
                    await socket.close(*item)
                    return
                await socket.send(item)
        except ConnectionClosed:
            pass  # the reader ends the line

    def _arguments(self, token: str | None) -> dict[str, Any]:
        protocols, headers = [_SUBPROTOCOL], {}
        if token is not None and self._is_bearer_subprotocol:
            protocols.append(f"bearer.{token}")
        elif token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return {
            "subprotocols": protocols,
            "additional_headers": headers,
            "compression": None,
            "open_timeout": self._connect_timeout_s,
            "close_timeout": CLOSE_TIMEOUT_S,
            "ping_interval": self._ping_interval_s,
            "ping_timeout": None,  # see `_watch`
            "create_connection": self._connection,
            "max_size": None,  # the gateway limits the size of messages
            "user_agent_header": "snorky-client",
            **self._options,
        }
