"""CentrifugeHandler: the route `/connection/websocket` of Centrifugo's clients.

A frame has one or more commands. Pings are empty replies, which clients answer with an empty command.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, Final

from aiohttp import web

from snorky.gateway.auth.sessions import Session
from snorky.gateway.errors import CloseCode, InvalidMessage, InvalidToken
from snorky.gateway.http.protocols.centrifuge.client import CentrifugeClient
from snorky.gateway.http.protocols.centrifuge.codes import Disconnect, disconnect_of
from snorky.gateway.http.protocols.centrifuge.commands import command_of
from snorky.gateway.http.protocols.centrifuge.emulation import EmulationHandler
from snorky.gateway.http.protocols.centrifuge.forms import FORMS
from snorky.gateway.http.protocols.centrifuge.rendering import DIALECTS
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.protocol import Endpoint, WebSocketProtocol
from snorky.gateway.protocol.codec import Encoding
from snorky.gateway.protocol.ws_frames import PING_FRAME, Dialect, close_frame

__all__ = ["CentrifugeHandler", "CentrifugeWebSocket"]

CONNECT_TIMEOUT_S: Final = 10.0
AT_ONCE: Final = 2  # steps of a frame that are done without waiting for a turn: one command, and the end
_SUBPROTOCOLS: Final = {"centrifuge-json": "json", "centrifuge-protobuf": "protobuf"}


class CentrifugeHandler:
    """Connects Centrifuge clients to the registry of a WebSocketHandler, by its rules."""

    def __init__(self, websockets: WebSocketHandler) -> None:
        self._websockets = websockets

    def routes(self, path: str = "/connection/websocket") -> list[web.RouteDef]:
        """Make the routes for an aiohttp application: WebSocket, and what clients use without it."""
        return [web.get(path, self._handle, allow_head=False), *EmulationHandler(self._websockets).routes()]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        is_personal = self._websockets.public.centrifuge_personal_channels
        return await self._websockets.handle(
            request, CentrifugeWebSocket, form=_form_of(request), has_personal_channel=is_personal
        )


class CentrifugeWebSocket(WebSocketProtocol):
    """One client's WebSocket. form: "json" or "protobuf"."""

    __slots__ = ("_client", "_deadline", "_form", "ping_frame")

    transport_name = "centrifuge"
    can_deflate = False
    subprotocols: Mapping[str, Encoding] = dict.fromkeys(_SUBPROTOCOLS, Encoding.JSON)

    def __init__(
        self,
        endpoint: Endpoint,
        transport: asyncio.Transport,
        dialect: Dialect,
        remote_ip: str,
        *,
        form: str,
        has_personal_channel: bool,
        session: Session | None = None,
        refusal: InvalidToken | None = None,
    ) -> None:
        super().__init__(endpoint, transport, DIALECTS[form], remote_ip, session=session, refusal=refusal)
        self._form = FORMS[form]
        self.ping_frame = PING_FRAME  # of WebSocket, until `connect` is answered
        self._client = self._connection.frontend = CentrifugeClient(
            endpoint, self._connection, self._form, has_personal_channel=has_personal_channel, wire=self
        )
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection, and the deadline of `connect`."""
        super().connection_made(transport)
        self._deadline = asyncio.get_running_loop().call_later(CONNECT_TIMEOUT_S, self._on_stale)

    def release(self) -> None:
        """Release everything."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._client.stop()
        super().release()
        del self._client  # they refer to each other: only the collector could free them

    @property
    def is_full(self) -> bool:
        """See `Wire`."""
        return self._is_full

    def take_commands(self, message: Any) -> bool:
        """See `Wire`: they come in frames only."""
        return False

    def beat(self) -> None:
        """Ping, or abort if the client has gone."""
        if self._client.has_answered:
            self.ping_frame = self._connection.dialect.frame(self._form.ping)
        super().beat()

    def close_frame(self, code: int, reason: str) -> bytes:
        """Encode the end of the connection for clients of this protocol."""
        return close_frame(disconnect_of(code, reason), reason)

    def _on_stale(self) -> None:
        if not self._client.has_begun:
            self._connection.close(CloseCode.AUTHENTICATION_TIMEOUT, "stale")

    def _on_frame(self, opcode: int, payload: bytes) -> Iterator[None] | None:
        if opcode != self._connection.dialect.opcode or self._connection.is_closed:
            return super()._on_frame(opcode, payload)
        self._endpoint.count_message(len(payload), self.transport_name)
        work = self._work_off(payload)
        for _ in range(AT_ONCE):
            if next(work, work) is work:
                return None
        return work

    def _work_off(self, frame: bytes) -> Iterator[None]:
        """Process the commands of a frame; yields after each. Raises ProtocolFault."""
        is_empty = True
        try:
            for value, size in self._form.read(frame):
                is_empty = False
                command = command_of(value)
                if command is None:
                    self._on_pong()
                else:
                    self._client.process(command, size)
                if self._connection.is_closed:
                    return
                yield
        except InvalidMessage as error:
            self._endpoint.node.metrics.client_errors.labels(error.code).inc()
            self._connection.close(Disconnect.BAD_REQUEST, "bad request")
            return
        if is_empty:
            self._count_frame()

    def _on_pong(self) -> None:
        if self._is_pong_due:
            self._is_pong_due = False
        else:
            self._count_frame()


def _form_of(request: web.Request) -> str:
    """Return the form that a client asks for, by its subprotocol or its URL."""
    offer = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ()))
    named = [_SUBPROTOCOLS[name] for each in offer.split(",") if (name := each.strip()) in _SUBPROTOCOLS]
    asked = (request.query.get("format"), request.query.get("cf_protocol"))
    return named[0] if named else "protobuf" if "protobuf" in asked else "json"
