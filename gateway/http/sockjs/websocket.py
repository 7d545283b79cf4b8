"""SockJS over a WebSocket: without a session that outlives the connection, only other frames. Costs as little."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from typing import Final

from snorky.gateway.auth.sessions import Session as Login
from snorky.gateway.errors import CloseCode, InvalidMessage, InvalidToken
from snorky.gateway.http.sockjs.frames import HEARTBEAT, OPEN, WEBSOCKET_DIALECT, decode_frame, end_frame
from snorky.gateway.http.websocket.protocol import Endpoint, WebSocketProtocol
from snorky.gateway.protocol.ws_frames import TEXT, Dialect, text_frame

__all__ = ["SockJSWebSocket"]

HEARTBEAT_S: Final = 25.0
_OPEN: Final = text_frame(OPEN)
_HEARTBEAT: Final = text_frame(HEARTBEAT)


class SockJSWebSocket(WebSocketProtocol):
    """One client's WebSocket with SockJS frames."""

    __slots__ = ("_beats",)

    transport_name = "sockjs"
    can_deflate = False

    def __init__(
        self,
        endpoint: Endpoint,
        transport: asyncio.Transport,
        dialect: Dialect,
        remote_ip: str,
        *,
        session: Login | None = None,
        refusal: InvalidToken | None = None,
    ) -> None:
        super().__init__(endpoint, transport, WEBSOCKET_DIALECT, remote_ip, session=session, refusal=refusal)
        self._beats = 0

    @property
    def frame_max_bytes(self) -> int:
        """The limit of one frame: messages are JSON inside JSON strings, where every quote takes two bytes."""
        return 2 * super().frame_max_bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection, and send the open frame."""
        if self._refusal is None:
            self._transport.write(_OPEN)
        super().connection_made(transport)

    def close(self, code: int, reason: str) -> None:
        """Send the close frame of SockJS, then that of WebSocket."""
        self._transport.write(text_frame(end_frame(code, reason)))
        super().close(code, reason)

    def beat(self) -> None:
        """Ping as a plain WebSocket does, and send the SockJS heartbeat when due."""
        super().beat()
        self._beats += 1
        if self._beats % max(1, math.floor(HEARTBEAT_S / self._endpoint.wheel.interval_s)) == 0:
            self._connection.write(_HEARTBEAT)

    def _on_frame(self, opcode: int, payload: bytes) -> Iterator[None] | None:
        if opcode != TEXT or self._connection.is_closed:
            return super()._on_frame(opcode, payload)
        try:
            messages = decode_frame(payload)
        except InvalidMessage as error:
            self._endpoint.node.metrics.client_errors.labels(error.code).inc()
            self._connection.close(CloseCode.INVALID_TEXT, str(error))
            return None
        if len(messages) > 1:
            return self._receive_all(messages)
        if messages:
            self._receive(messages[0])
        else:
            self._count_frame()
        return None

    def _receive_all(self, messages: Sequence[str]) -> Iterator[None]:
        for message in messages:
            self._receive(message)
            yield

    def _receive(self, message: str) -> None:
        if self._connection.is_closed:
            return
        data, max_bytes = message.encode(), self._endpoint.node.limits.message_max_bytes
        if len(data) > max_bytes:
            self._connection.close(CloseCode.TOO_LARGE, f"Message larger than {max_bytes} bytes")
            return
        self._endpoint.count_message(len(data), self.transport_name)
        self._endpoint.registry.receive(self._connection, data)
