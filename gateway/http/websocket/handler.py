"""WebSocketHandler: the route that connects clients to a registry."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

from aiohttp import HttpVersion11, web

from snorky.gateway.config.origins import Origins
from snorky.gateway.config.settings import Public
from snorky.gateway.errors import ConnectionClosed
from snorky.gateway.http.serving.accept_gate import AcceptGate, Descriptors
from snorky.gateway.http.websocket.admission import Admission
from snorky.gateway.http.websocket.aiohttp_internals import take_over, verdict_on
from snorky.gateway.http.websocket.credentials import Asked, Identify, admit
from snorky.gateway.http.websocket.entry import enter, refuse_draining
from snorky.gateway.http.websocket.handshake import HandshakeRefused, Headers, upgrade
from snorky.gateway.http.websocket.protocol import Endpoint, WebSocketProtocol
from snorky.gateway.http.websocket.timer_wheel import TimerWheel
from snorky.gateway.http.websocket.turns import Turns
from snorky.gateway.node import node_of
from snorky.gateway.sdk.registry import ServiceRegistry

__all__ = ["SEEN_BY_PAGES", "Caller", "WebSocketHandler"]

# Browsers hide from a page why a WebSocket was refused; with this header a page can read the reason by fetch.
SEEN_BY_PAGES: Final = {"Access-Control-Allow-Origin": "*"}

_Taken = TypeVar("_Taken", covariant=True)


class Caller(Protocol[_Taken]):
    """The client of one handshake, through aiohttp or through the `FrontDoor`. peer: the address that has connected."""

    @property
    def headers(self) -> Headers:
        """Header fields."""

    @property
    def peer(self) -> str:
        """The address that has connected; "" = unknown."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """Its transport; None: it has gone."""

    @property
    def is_plain(self) -> bool:
        """True for HTTP/1.1 without a body."""

    def asked(self, hook: Identify | None) -> Asked | None:
        """Return how the hook, if there is one, is asked about this request."""

    def take_over(self, protocol: WebSocketProtocol, response: bytes) -> _Taken:
        """Write the response, and pass the connection to its protocol. Raises ConnectionClosed: it has gone."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A caller through aiohttp."""

    request: web.Request

    @property
    def headers(self) -> Headers:
        return self.request.headers

    @property
    def peer(self) -> str:
        return self.request.remote or ""

    @property
    def transport(self) -> asyncio.Transport | None:
        return self.request.transport

    @property
    def is_plain(self) -> bool:
        return self.request.version >= HttpVersion11 and not self.request.body_exists

    def asked(self, hook: Identify | None) -> Asked | None:
        return None if hook is None else partial(hook, self.request)

    def take_over(self, protocol: WebSocketProtocol, response: bytes) -> web.StreamResponse:
        return take_over(self.request, protocol, response)


class WebSocketHandler:
    """Connects WebSocket clients to a registry, which must be attached to a node before the first client connects.

        app.add_routes([WebSocketHandler(registry).route("/ws")])

    public: origins, proxies, compression, pings; by default the settings' defaults. identify_hook: returns the
    identity of a request without a token, e.g. from a session cookie; None = unknown.
    """

    def __init__(
        self, registry: ServiceRegistry, public: Public | None = None, *, identify_hook: Identify | None = None
    ) -> None:
        self._registry = registry
        self.identify_hook = identify_hook
        if identify_hook is not None:
            registry.expect_identities()
        self.public = public or Public()
        self._allowed_origins = Origins(self.public.allowed_origins)

    @cached_property
    def _endpoint(self) -> Endpoint:
        node, public = node_of(self._registry), self.public
        descriptors = Descriptors.now()
        limits = replace(node.limits, connections=descriptors.bounded(node.limits.connections))
        descriptors.make_room(limits.connections)
        admission = Admission(limits, public.trusted_proxies, node.metrics)
        gate = AcceptGate(limits, descriptors, admission.network_of, node.metrics)
        turns = Turns(node.metrics.queued_clients)
        return Endpoint(node, self._registry, TimerWheel(public.ping_interval_s), admission, gate, turns)

    @property
    def registry(self) -> ServiceRegistry:
        """The services for its clients."""
        return self._registry

    @property
    def endpoint(self) -> Endpoint:
        """State shared by its connections. Raises ConfigurationError: the registry is not attached to a node yet."""
        return self._endpoint

    def route(self, path: str) -> web.RouteDef:
        """Make the route for an aiohttp application."""
        return web.get(path, self.handle, allow_head=False)

    async def handle(
        self, request: web.Request, protocol: type[WebSocketProtocol] = WebSocketProtocol, **options: Any
    ) -> web.StreamResponse:
        """Respond to one handshake; an accepted one leaves aiohttp.

        protocol: its class for the WebSocket; options: further arguments of its constructor.
        """
        try:
            if (verdict := verdict_on(request)) is not None:
                raise verdict
            return await self.accept(_Request(request), protocol, options)
        except ConnectionClosed:
            return web.Response()  # the client has gone
        except HandshakeRefused as refused:
            return self.refuse(request, refused)

    def refuse(self, request: web.Request, refused: HandshakeRefused) -> web.Response:
        """Count a refused handshake, and make its response."""
        self.count_refused(_Request(request), refused)
        # RFC 6455 4.4: reply to an unknown version with the supported one
        headers = {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"} if refused.status == 426 else {}
        if refused.status in (429, 503):
            headers["Retry-After"] = "5"
        headers |= SEEN_BY_PAGES
        response = web.Response(status=refused.status, text=f"{refused}\n", headers=headers)
        response.force_close()  # what follows a refused upgrade is not a request
        return response

    def count_refused(self, caller: Caller[object], refused: HandshakeRefused) -> None:
        """Count a refused handshake, also one without a response because its client has gone."""
        self._endpoint.node.metrics.handshakes_rejected.labels(refused.reason).inc()
        self._note("handshake", refused.reason, caller)

    def asked(self, request: web.Request) -> Asked | None:
        """Return how the operator's hook is asked about a request; None: there is no hook."""
        return _Request(request).asked(self.identify_hook)

    def _note(self, door: str, reason: str, caller: Caller[object]) -> None:
        endpoint, headers = self._endpoint, caller.headers
        address, origin = endpoint.admission.address_of(caller.peer, headers), headers.get("Origin", "")
        endpoint.node.auth.refusals.note(door, reason, address=address, origin=origin)

    @property
    def may_wait(self) -> bool:
        """True if `accept` may wait: for keys of tokens, Redis, the backend or a hook."""
        auth, counts = self._endpoint.node.auth, self._endpoint.node.cluster_limits.counts
        return auth.takes_tokens or auth.asks_backend or counts.is_counting or self.identify_hook is not None

    async def accept(
        self,
        caller: Caller[_Taken],
        protocol_class: type[WebSocketProtocol] = WebSocketProtocol,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> _Taken:
        """Accept one handshake, or refuse it, whichever way it has come. Returns what the caller's `take_over` returns.

        Raises HandshakeRefused; ConnectionClosed: the client has gone.
        """
        endpoint = self._endpoint
        refuse_draining(endpoint.node)
        ip = endpoint.admission.address_of(caller.peer, caller.headers)
        endpoint.admission.knock(ip)
        if not caller.is_plain:  # RFC 6455 4.2.1; a body would be parsed as frames
            raise HandshakeRefused(400, "request", "A handshake is a GET of HTTP/1.1 without a body")
        compression = self.public.compression and protocol_class.can_deflate
        accepted = upgrade(
            caller.headers,
            allowed_origins=self._allowed_origins,
            compression=compression,
            subprotocols=protocol_class.subprotocols,
        )
        entry = await enter(
            endpoint.node,
            endpoint.admission,
            ip,
            lambda: admit(caller.headers, endpoint.node, caller.asked(self.identify_hook), address=ip),
        )
        try:
            if entry.refusal is not None:
                self._note("token", entry.refusal.reason, caller)
            refuse_draining(endpoint.node)  # authentication may have taken a while
            transport = caller.transport
            if transport is None or transport.is_closing():
                raise ConnectionClosed
        except BaseException:
            entry.leave()
            raise
        protocol = protocol_class(
            endpoint, transport, accepted.dialect, ip, session=entry.session, refusal=entry.refusal, **options
        )
        protocol.units = entry.units
        try:
            return caller.take_over(protocol, accepted.response)
        except ConnectionClosed:
            entry.leave()
            raise
