"""Sockets: the WebSockets of a session. All that knows the library `websockets`.

Rules:
- One task per line dials, reads until its end, and tells the session; one per line writes, so that sending never waits.
- The library answers the gateway's pings, and pings by itself: a gateway that has vanished is noticed.
- Whatever ends a line, the session is told once, with a close code of RFC 6455 7.1.5.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from snorky.realtime.line import Line
from snorky.realtime.token import TokenSource

if TYPE_CHECKING:
    from snorky.realtime.session import Session

__all__ = ["Sockets"]

ABNORMAL: Final = 1006
CLOSE_TIMEOUT_S: Final = 2.0
_SUBPROTOCOL: Final = "snorky.json"

_log = logging.getLogger("snorky.realtime")


class Sockets:
    """Io of a session. options: more arguments of `websockets.connect`, `ssl` for example."""

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
            from websockets.asyncio.client import connect
        except ImportError as error:
            raise ImportError("Client needs websockets: pip install 'snorky-client[realtime]'") from error

        class Connect(connect):
            def process_redirect(self, exc: Exception) -> Exception:
                return exc  # no gateway redirects, and where it leads the token would go too

        self._connect = Connect
        self._url = url
        self._tokens = tokens
        self._connect_timeout_s = connect_timeout_s
        self._ping_interval_s = ping_interval_s
        self._is_bearer_subprotocol = is_bearer_subprotocol
        self._options = options
        self._tasks: dict[Line, asyncio.Task[None]] = {}
        self._outboxes: dict[Line, asyncio.Queue[str | tuple[int, str]]] = {}
        self.session: Session  # set before the first dial

    def dial(self, line: Line, *, is_token_new: bool) -> None:
        """Open a connection for a line."""
        self._outboxes[line] = asyncio.Queue()  # bounded by what the session has under way
        task = asyncio.get_running_loop().create_task(self._run(line, is_token_new), name=f"snorky-{line.number}")
        self._tasks[line] = task
        task.add_done_callback(lambda _task: self._forget(line))

    def send(self, line: Line, text: str) -> None:
        """Send one message; never waits."""
        if line in self._outboxes:
            self._outboxes[line].put_nowait(text)

    def close(self, line: Line, code: int, reason: str) -> None:
        """Close a line behind what was sent before."""
        if line in self._outboxes:
            self._outboxes[line].put_nowait((code, reason))
        if not line.is_open and line in self._tasks:
            self._tasks[line].cancel()  # it is still being dialled

    async def aclose(self) -> None:
        """Wait for the end of all lines; the session has closed them."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    def _forget(self, line: Line) -> None:
        del self._tasks[line]
        del self._outboxes[line]

    async def _run(self, line: Line, is_token_new: bool) -> None:
        from websockets.exceptions import WebSocketException

        code, reason = ABNORMAL, ""
        try:
            code, reason = await self._live(line, is_token_new)
        except (OSError, WebSocketException) as error:  # nobody there, a refused handshake, not in time
            reason = f"{type(error).__name__}: {error}"
            _log.info("No connection to %s: %s", self._url, reason)
        except Exception as error:  # the top of the task; the token's function for example
            reason = f"{type(error).__name__}: {error}"
            _log.exception("Connection to %s", self._url)
        finally:
            self.session.on_end(line, code, reason)

    async def _live(self, line: Line, is_token_new: bool) -> tuple[int, str]:
        from websockets.exceptions import ConnectionClosed

        async with asyncio.timeout(self._connect_timeout_s):
            arguments = self._arguments(await self._tokens.get(is_new=is_token_new))
            socket = await self._connect(self._url, **arguments)
        writer = asyncio.get_running_loop().create_task(self._write(line, socket))
        try:
            self.session.on_open(line)
            while True:
                self.session.on_text(line, await socket.recv())
        except ConnectionClosed:
            return socket.close_code or ABNORMAL, socket.close_reason or ""
        finally:
            writer.cancel()
            await asyncio.wait([writer])
            await socket.close()

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
            pass  # the reader tells

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
            "ping_timeout": self._ping_interval_s,
            "max_size": None,  # a replay of 300 messages comes as one
            "user_agent_header": "snorky-client",
            **self._options,
        }
