"""Emulation: Centrifuge clients without a WebSocket. Messages come in one long response, commands in later requests.

    POST /connection/http_stream      the first commands in the body; a message a line, or with its length in front
    GET  /connection/sse?cf_connect=  the first commands in the URL; or POST, in the body; messages as events
    POST /emulation                   {"node", "session", "data": later commands}

Rules:
- A later request may reach any node. It names the node and a secret session, which only the client knows; the node
  passes the commands on, and answers 404 if that connection has gone.
- Which pages may connect: as for SockJS and event streams, by the origin.
- The end is a push `disconnect`, then the end of the response.
"""

import base64
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

from aiohttp import web

from snorky.gateway.auth.sessions import Session
from snorky.gateway.config.origins import Origins
from snorky.gateway.contracts.directory import Owner
from snorky.gateway.errors import (
    BrokerUnavailable,
    ConfigurationError,
    ConnectionClosed,
    InvalidMessage,
    InvalidToken,
)
from snorky.gateway.http.protocols.centrifuge.client import EMULATION
from snorky.gateway.http.protocols.centrifuge.emulated import EmulatedConnection
from snorky.gateway.http.protocols.centrifuge.protobuf import read_emulation
from snorky.gateway.http.serving.bodies import Bodies
from snorky.gateway.http.serving.page_answers import Respond, answer_page
from snorky.gateway.http.serving.page_check import check_navigation, check_page, check_stated, cors_headers
from snorky.gateway.http.serving.response_stream import ResponseStream, is_gone, write_stream
from snorky.gateway.http.websocket.credentials import admit
from snorky.gateway.http.websocket.entry import Entry, enter, refuse_draining
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.http.websocket.protocol import Endpoint
from snorky.gateway.http.websocket.timer_wheel import TimerWheel
from snorky.gateway.protocol.codec import decode_json, encode_json

__all__ = ["EmulationHandler"]

FORWARDS_MAX: Final = 100  # requests that wait for another node
_SESSION: Final = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9]{1,18})~([A-Za-z0-9_.-]{1,64})~([0-9a-f]{32})")
BEAT_S: Final = 1.0  # maximum delay of noticing that a client has gone
_BINARY: Final = "application/octet-stream"
_TYPES: Final = {"sse": "text/event-stream; charset=utf-8", "json": "text/plain; charset=utf-8", "protobuf": _BINARY}


class EmulationHandler:
    """Serves clients without a WebSocket, of the registry of a WebSocketHandler, by its rules."""

    def __init__(self, websockets: WebSocketHandler) -> None:
        self._websockets = websockets
        self._allowed_origins = Origins(websockets.public.allowed_origins)
        self._connections: dict[str, EmulatedConnection] = {}  # of this node, by session
        self._forwards = 0  # in progress

    def routes(self) -> list[web.RouteDef]:
        """Make the routes for an aiohttp application."""
        stream, sse, later = "/connection/http_stream", "/connection/sse", "/emulation"
        return [
            web.post(stream, self._guarded(self._open_stream)),
            web.get(sse, self._guarded(self._open_sse), allow_head=False),
            web.post(sse, self._guarded(self._open_sse)),
            web.post(later, self._guarded(self._receive)),
            *(web.options(path, self._guarded(self._allow)) for path in (stream, sse, later)),
        ]

    @cached_property
    def _wheel(self) -> TimerWheel:
        return TimerWheel(BEAT_S)

    @cached_property
    def _bodies(self) -> Bodies:
        endpoint = self._websockets.endpoint
        return Bodies(endpoint.node.metrics, endpoint.admission.network_of)

    # -- streams -------------------------------------------------------------------------------------------------

    async def _open_stream(self, request: web.Request) -> web.StreamResponse:
        kind = "protobuf" if request.content_type == _BINARY else "json"
        return await self._open(request, kind, await self._body(request))

    async def _open_sse(self, request: web.Request) -> web.StreamResponse:
        body = request.query.get("cf_connect", "").encode() if request.method == "GET" else await self._body(request)
        return await self._open(request, "sse", body)

    async def _body(self, request: web.Request) -> bytes:
        """Read the commands in a body. Raises HandshakeRefused: too large."""
        body = await self._bodies.read(request, self._websockets.endpoint.admission.client_ip(request))
        if len(body) > self._websockets.endpoint.node.limits.message_max_bytes:
            raise HandshakeRefused(413, "request", "The commands are too large")
        return body

    async def _open(self, request: web.Request, kind: str, commands: bytes) -> web.StreamResponse:
        endpoint = self._websockets.endpoint
        node, address = endpoint.node, endpoint.admission.client_ip(request)
        refuse_draining(node)
        endpoint.admission.knock(address)
        identify = self._websockets.asked(request)
        entry = await enter(
            node, endpoint.admission, address, lambda: admit(request.headers, node, identify, address=address)
        )
        try:
            if entry.refusal is not None:
                raise HandshakeRefused(401, "token", str(entry.refusal))
            refuse_draining(node)  # authentication may have taken a while
        except BaseException:
            entry.leave()
            raise
        return await self._stream(request, kind, commands, entry)

    async def _stream(self, request: web.Request, kind: str, commands: bytes, entry: Entry) -> web.StreamResponse:
        """Make the connection of a client, and write its stream until it ends."""
        endpoint, node, public = self._websockets.endpoint, entry.node, self._websockets.public
        stream = ResponseStream(is_streaming=True, is_gone=lambda: is_gone(request))
        made = EmulatedConnection(
            endpoint,
            self._wheel,
            stream,
            entry.address,
            kind,
            cut=lambda: _cut(request),
            has_personal_channel=public.centrifuge_personal_channels,
            ping_every_s=public.ping_interval_s,
        )
        connection = made.connection
        try:
            node.cluster_limits.counts.bind(connection, entry.units)
            if entry.session is not None:
                self._bind(entry.session, made)
            node.connect(connection, endpoint.registry)
            _admit_direct(endpoint, made)
            self._wheel.add(made)
            self._connections[made.session] = made
            made.queue(commands, may_only_read=request.method == "GET")
            headers = {**_headers(kind), **cors_headers(request)}
            return await write_stream(request, stream, headers, b"", lambda data: (data,), keeps_alive=False)
        finally:
            self._connections.pop(made.session, None)
            stream.lose()
            self._wheel.remove(made)
            connection.mark_closed()
            made.leave_node()
            node.auth.forget(connection)  # needed if it was never connected to the node
            node.cluster_limits.counts.forget(connection)
            endpoint.admission.leave(entry.address)

    def _bind(self, session: Session, made: EmulatedConnection) -> None:
        try:
            self._websockets.endpoint.node.auth.bind(session, made.connection)
        except InvalidToken as error:  # it was revoked just now
            raise HandshakeRefused(401, "token", str(error)) from None

    # -- later commands ------------------------------------------------------------------------------------------

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        try:
            node_id, session, data = _read(body, is_binary=request.content_type == _BINARY)
        except (InvalidMessage, ValueError):
            raise HandshakeRefused(400, "request", "Send node, session and data") from None
        parts = _SESSION.fullmatch(session)  # it becomes a part of a message to the other node
        if parts is None or parts[1] != node_id:
            raise HandshakeRefused(400, "request", "This is no session")
        if node_id == self._websockets.endpoint.node.node_id:
            made = self._connections.get(session)
            is_received = made is not None and made.receive(parts[4], data)
        else:
            is_received = await self._forward(Owner(node_id, parts[3], int(parts[2])), parts[4], data)
        if not is_received:
            admission = self._websockets.endpoint.admission
            admission.knock(admission.client_ip(request))  # each guess counts as a handshake
            raise HandshakeRefused(404, "request", "There is no such session")
        return web.Response(status=204)

    async def _forward(self, owner: Owner, secret: str, data: bytes) -> bool:
        """Pass commands on to another node. Returns False: the connection has gone. Raises BrokerUnavailable."""
        message = {"secret": secret, "data": base64.b64encode(data).decode()}
        try:
            directory = self._websockets.endpoint.node.ownership.directory
        except ConfigurationError:  # this node is alone
            return False
        if self._forwards >= FORWARDS_MAX:
            raise BrokerUnavailable("too many commands wait for other nodes")
        self._forwards += 1
        try:
            return await directory.send(owner, encode_json({"service": EMULATION, "message": message}))
        finally:
            self._forwards -= 1

    # -- answers -------------------------------------------------------------------------------------------------

    async def _allow(self, _request: web.Request) -> web.StreamResponse:
        headers = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Max-Age": "300",
        }
        return web.Response(status=204, headers=headers)

    def _guarded(self, answer: Respond) -> Respond:
        async def checked(request: web.Request) -> web.StreamResponse:
            check_page(request, self._allowed_origins)
            check_navigation(request, may_be_framed=False)
            check_stated(request, self._allowed_origins, is_for_browsers=False)
            return await answer(request)

        async def respond(request: web.Request) -> web.StreamResponse:
            return await answer_page(request, checked, self._websockets.refuse)

        return respond


def _read(body: bytes, *, is_binary: bool) -> tuple[str, str, bytes]:
    """Read node, session and commands of a later request. Raises InvalidMessage, ValueError."""
    found: Any = read_emulation(body) if is_binary else decode_json(body)
    if not isinstance(found, dict):
        raise ValueError("no object")
    node_id, session, data = found.get("node"), found.get("session"), found.get("data")
    frame = data.encode() if isinstance(data, str) else data
    if not (isinstance(node_id, str) and isinstance(session, str) and isinstance(frame, bytes)):
        raise ValueError("a field is missing")
    return node_id, session, frame


def _headers(kind: str) -> Mapping[str, str]:
    return {
        "Content-Type": _TYPES[kind],
        "Cache-Control": "no-store, no-transform",
        "X-Content-Type-Options": "nosniff",
    }


def _admit_direct(endpoint: Endpoint, made: EmulatedConnection) -> None:
    try:
        endpoint.node.ownership.admit_direct(made.connection)
    except (ConfigurationError, ConnectionClosed):
        pass


def _cut(request: web.Request) -> None:
    """Abort the client's connection: what is queued for it is dropped."""
    if request.transport is not None:
        request.transport.abort()
