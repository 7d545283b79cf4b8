"""RawHandler: the route `/raw` of plain WebSockets.

    GET /raw?channel=C[&format=json|text][&subscribe=false][&service=pubsub]

Rules:
- The client is subscribed to the channel; each of its frames is published there.
- There are no replies. Each refusal ends the connection, with the cause in the close frame: otherwise the client would
  believe that its message was published.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from snorky.gateway.auth.sessions import Session
from snorky.gateway.errors import CloseCode, InvalidMessage, InvalidToken
from snorky.gateway.http.protocols.raw.rendering import DIALECTS, Format, value_of
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.http.websocket.protocol import Endpoint, WebSocketProtocol
from snorky.gateway.protocol.codec import Envelope, Json
from snorky.gateway.protocol.ws_frames import TEXT, Dialect

__all__ = ["RawHandler", "RawRequest", "RawWebSocket"]

_KEYS: Final = frozenset(("channel", "format", "service", "subscribe"))
_RETRYABLE: Final = frozenset(("internal", "rate_limited", "unavailable"))


@dataclass(frozen=True, slots=True)
class RawRequest:
    """The parameters in the URL of a connection."""

    channel: str
    service: str = "pubsub"
    format: Format = "json"
    subscribes: bool = True


class RawHandler:
    """Connects plain WebSockets to the registry of a WebSocketHandler, by its rules."""

    def __init__(self, websockets: WebSocketHandler) -> None:
        self._websockets = websockets

    def routes(self, path: str = "/raw") -> list[web.RouteDef]:
        """Make the route for an aiohttp application."""
        return [web.get(path, self._handle, allow_head=False)]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = _read_query(request)
        except HandshakeRefused as refused:
            return self._websockets.refuse(request, self._knocked(request) or refused)
        return await self._websockets.handle(request, RawWebSocket, asked=asked)

    def _knocked(self, request: web.Request) -> HandshakeRefused | None:
        """Count a request that is refused before its handshake; returns another refusal, if there are too many."""
        admission = self._websockets.endpoint.admission
        try:
            admission.knock(admission.client_ip(request))
        except HandshakeRefused as refused:
            return refused
        return None


class RawWebSocket(WebSocketProtocol):
    """One client's plain WebSocket; the `Frontend` of its connection."""

    __slots__ = ("_asked",)

    transport_name = "raw"
    can_deflate = False
    authenticates = False  # see `Frontend`

    def __init__(
        self,
        endpoint: Endpoint,
        transport: asyncio.Transport,
        dialect: Dialect,
        remote_ip: str,
        *,
        asked: RawRequest,
        session: Session | None = None,
        refusal: InvalidToken | None = None,
    ) -> None:
        super().__init__(endpoint, transport, DIALECTS[asked.format], remote_ip, session=session, refusal=refusal)
        self._asked = asked
        self._connection.frontend = self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection, and subscribe it."""
        super().connection_made(transport)
        if self._asked.subscribes and not self._connection.is_closed:
            self._call("subscribe", {"channel": self._asked.channel}, 0)

    def accepts_order(self, channel: Json) -> bool:
        """See `Frontend`: messages do not name their channel."""
        return False

    def recovers_from(self, channel: Json) -> None:
        """See `Frontend`."""

    def take(self, envelope: Mapping[str, Any]) -> None:
        """See `Frontend`: there is nothing of the kind."""

    def translate(self, envelope: Mapping[str, Any]) -> None:
        """Send nothing; close if an operation was refused or the subscription has ended. See `Frontend`."""
        message = envelope["message"]
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "error":
            code = CloseCode.RECONNECT if message["code"] in _RETRYABLE else CloseCode.POLICY
            self._connection.close(code, f"{message['code']}: {message['message']}")
        elif kind == "unsubscribed":
            self._connection.close(CloseCode.POLICY, f"{message['code']}: {message['reason']}")

    def _on_frame(self, opcode: int, payload: bytes) -> Iterator[None] | None:
        if opcode != TEXT or self._connection.is_closed:
            return super()._on_frame(opcode, payload)
        self._endpoint.count_message(len(payload), self.transport_name)
        try:
            message = value_of(payload, self._asked.format)
        except InvalidMessage as error:
            self._endpoint.registry.refuse(self._connection, error)
            return None
        self._call("publish", {"channel": self._asked.channel, "message": message}, len(payload))
        return None

    def _call(self, command: str, params: dict[str, Json], size: int) -> None:
        envelope = Envelope(self._asked.service, {"command": command, "params": params, "callId": command})
        self._endpoint.registry.accept(self._connection, envelope, size)


def _read_query(request: web.Request) -> RawRequest:
    """Read the URL's parameters. Raises HandshakeRefused."""
    query = request.query
    if unknown := query.keys() - _KEYS:
        raise HandshakeRefused(400, "request", f"Unknown parameter: {min(unknown)[:50]!a}")
    if any(len(query.getall(name)) > 1 for name in query):
        raise HandshakeRefused(400, "request", "Each parameter may occur once")
    if not query.get("channel"):
        raise HandshakeRefused(400, "request", "Name a channel: /raw?channel=CHANNEL")
    form, subscribes = query.get("format", "json"), query.get("subscribe", "true")
    if form not in ("json", "text"):
        raise HandshakeRefused(400, "request", "format must be json or text")
    if subscribes not in ("true", "false"):
        raise HandshakeRefused(400, "request", "subscribe must be true or false")
    return RawRequest(
        query["channel"], query.get("service", "pubsub"), "text" if form == "text" else "json", subscribes == "true"
    )
