"""PusherHandler: the route `/app/KEY` of Pusher's clients.

    GET /app/KEY?protocol=7

A handshake that names an unknown app or protocol is accepted, and its connection closed with the reason: clients learn
nothing from a refused handshake, and would try again.
"""

import asyncio
from collections.abc import Iterator
from typing import Final

from aiohttp import web

from snorky.gateway.auth.sessions import Session
from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.errors import CloseCode, ConfigurationError, InvalidToken
from snorky.gateway.http.protocols.pusher.api import PusherAPI
from snorky.gateway.http.protocols.pusher.client import PusherClient
from snorky.gateway.http.protocols.pusher.codes import ErrorCode, close_code_of
from snorky.gateway.http.protocols.pusher.events import encode_event
from snorky.gateway.http.protocols.pusher.rendering import dialect_of
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.protocol import Endpoint, WebSocketProtocol
from snorky.gateway.protocol.ws_frames import TEXT, Dialect, close_frame
from snorky.gateway.sdk.registry import ServiceRegistry

__all__ = ["NO_APP", "PusherHandler", "PusherWebSocket", "demand_closed", "fault_of"]

PROTOCOLS: Final = range(5, 8)  # versions that differ only in what the server sends


class PusherHandler:
    """Connects Pusher's clients to the registry of a WebSocketHandler, by its rules; and serves the HTTP API."""

    def __init__(self, websockets: WebSocketHandler) -> None:
        self._websockets = websockets
        self._apps = {app.key: app for app in (websockets.public.pusher_apps or {}).values()}

    def routes(self) -> list[web.RouteDef]:
        """Make the routes for an aiohttp application; without apps there are none.

        Raises ConfigurationError: the service of an app lets everyone subscribe to private channels.
        """
        for app in self._apps.values():
            demand_closed(self._websockets.registry, app)
        if not self._apps:
            return []
        return [web.get("/app/{key}", self._handle, allow_head=False), *PusherAPI(self._websockets).routes()]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        app = self._apps.get(request.match_info["key"])
        return await self._websockets.handle(request, PusherWebSocket, app=app, fault=fault_of(request, app))


class PusherWebSocket(WebSocketProtocol):
    """One client's WebSocket. app: None = there is no such app. fault: why it is closed at once."""

    __slots__ = ("_client", "_end", "_fault")

    transport_name = "pusher"
    can_deflate = False

    def __init__(
        self,
        endpoint: Endpoint,
        transport: asyncio.Transport,
        dialect: Dialect,
        remote_ip: str,
        *,
        app: PusherApp | None,
        fault: tuple[ErrorCode, str] | None,
        session: Session | None = None,
        refusal: InvalidToken | None = None,
    ) -> None:
        service = "pubsub" if app is None else app.service
        super().__init__(endpoint, transport, dialect_of(service), remote_ip, session=session, refusal=refusal)
        self._fault = fault
        self._end: ErrorCode | None = None
        self._client = PusherClient(endpoint, self._connection, app or NO_APP)
        self._connection.frontend = self._client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection, and tell the client its id."""
        super().connection_made(transport)
        if self._connection.is_closed:
            return
        if self._fault is None:
            self._connection.write(self._connection.dialect.frame(self._client.established()))
            return
        self._end, text = self._fault
        error = encode_event("pusher:error", {"code": self._end, "message": text})
        self._connection.write(self._connection.dialect.frame(error))
        self._connection.close(CloseCode.POLICY, text)

    def release(self) -> None:
        """Release everything."""
        self._client.stop()
        super().release()

    def close_frame(self, code: int, reason: str) -> bytes:
        """Encode the end of the connection for clients of this protocol."""
        return close_frame(close_code_of(code) if self._end is None else self._end, reason)

    def _on_frame(self, opcode: int, payload: bytes) -> Iterator[None] | None:
        if opcode != TEXT or self._connection.is_closed:
            return super()._on_frame(opcode, payload)
        self._endpoint.count_message(len(payload), self.transport_name)
        self._client.process(payload)
        return None


_PRIVATE: Final = ("private-x", "private-encrypted-x", "presence-x", "#server-to-user-x")
NO_APP: Final = PusherApp(id="", key="", secret="")


def fault_of(request: web.Request, app: PusherApp | None) -> tuple[ErrorCode, str] | None:
    """Return why a client cannot connect: code and text; None = it can. app: None = there is none with its key."""
    version = request.query.get("protocol", "")
    if app is None:
        return ErrorCode.NO_SUCH_APP, "There is no app with this key"
    if not version:
        return ErrorCode.NO_PROTOCOL, "The URL names no protocol: add protocol=7"
    if not version.isdecimal() or len(version) > 3 or int(version) not in PROTOCOLS:
        return ErrorCode.UNSUPPORTED_PROTOCOL, "This protocol is not supported: use 5, 6 or 7"
    return None


def demand_closed(registry: ServiceRegistry, app: PusherApp) -> None:
    """Check that clients of other protocols need a permission for private channels. Raises ConfigurationError.

    The settings add rules for them (`config.pusher.RULES`); a program that makes its own services must do so itself.
    """
    if app.service not in registry:
        raise ConfigurationError(f"the Pusher app {app.id} needs a service {app.service}")
    access = registry[app.service].access
    for name in _PRIVATE:
        if access is None or access.is_open(access.rules.find(name), "subscribe"):
            raise ConfigurationError(
                f"the service {app.service} of the Pusher app {app.id} lets everyone subscribe to {name}: "
                'add rules for such names with allow_subscribe = "token", and before wider ones'
            )
