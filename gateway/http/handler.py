"""WebSocketHandler: the route that connects clients to a registry."""

from aiohttp import web

from gateway.errors import ConnectionClosed
from gateway.http.admission import Admission
from gateway.http.handshake import HandshakeRefused, upgrade
from gateway.http.takeover import take_over
from gateway.http.websocket import Endpoint, WebSocketProtocol
from gateway.http.wheel import Wheel
from gateway.node import Node
from gateway.registry import ServiceRegistry
from gateway.settings import Public

__all__ = ["WebSocketHandler"]


class WebSocketHandler:
    """Connects WebSocket clients to a registry of a node.

        app.add_routes([WebSocketHandler(node, registry).route("/ws")])

    public: who may connect, and how; the defaults unless given. One handler has one wheel: call `stop` at the end.
    """

    def __init__(self, node: Node, registry: ServiceRegistry, public: Public | None = None) -> None:
        public = public or Public()
        self._node = node
        self._allowed_origins = frozenset(public.allowed_origins)
        self._compression = public.compression
        self._admission = Admission(node.limits, public.trusted_proxies, node.metrics)
        self._endpoint = Endpoint(node, registry, Wheel(public.ping_interval_s), self._admission)

    def route(self, path: str) -> web.RouteDef:
        """Make the route for an aiohttp application."""
        return web.get(path, self.handle)

    def stop(self) -> None:
        """Stop the timer of pings."""
        self._endpoint.wheel.stop()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one handshake; an accepted one leaves aiohttp for good."""
        try:
            return self._accept(request)
        except HandshakeRefused as refused:
            self._node.metrics.handshakes_rejected.labels(refused.reason).inc()
            # RFC 6455 4.4: an unknown version is answered with the one that we speak
            headers = {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"} if refused.status == 426 else {}
            if refused.status in (429, 503):
                headers["Retry-After"] = "5"
            # what follows a refused upgrade is no request: end the connection
            return web.Response(status=refused.status, text=f"{refused}\n", headers={**headers, "Connection": "close"})

    def _accept(self, request: web.Request) -> web.StreamResponse:
        if self._node.is_draining:
            raise HandshakeRefused(503, "draining", "This node is going away: try another one")
        accepted = upgrade(request.headers, allowed_origins=self._allowed_origins, compression=self._compression)
        transport = request.transport
        if transport is None:
            raise ConnectionClosed
        ip = self._admission.client_ip(request)
        self._admission.enter(ip)
        protocol = WebSocketProtocol(self._endpoint, transport, accepted.dialect, ip)
        try:
            return take_over(request, protocol, accepted.response)
        except ConnectionClosed:
            self._admission.leave(ip)
            raise
