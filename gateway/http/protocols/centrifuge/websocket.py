"""CentrifugeHandler: the route `/connection/websocket` of Centrifugo's clients.

Rules:
- The first command is `connect`; it must come in time. Until it is answered, the client gets nothing else.
- After a failed `connect` the connection is closed.
- Pings are empty replies, which clients answer with an empty command.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from aiohttp import web

from snorky.gateway._version import __version__
from snorky.gateway.auth.sessions import Session
from snorky.gateway.errors import CloseCode, InvalidChannel, InvalidMessage, InvalidToken
from snorky.gateway.http.protocols.centrifuge import codes, replies
from snorky.gateway.http.protocols.centrifuge.codes import Disconnect, ErrorCode
from snorky.gateway.http.protocols.centrifuge.commands import (
    PUBSUB,
    Call,
    Command,
    Unavailable,
    command_of,
    envelopes_of,
    unsubscribing,
)
from snorky.gateway.http.protocols.centrifuge.forms import FORMS, payload_of
from snorky.gateway.http.protocols.centrifuge.rendering import DIALECTS, client_info, push
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.protocol import Endpoint, WebSocketProtocol
from snorky.gateway.protocol.codec import Encoding, Json, channel_key, channel_name, encode_json
from snorky.gateway.protocol.ws_frames import Dialect, close_frame

__all__ = ["CentrifugeHandler", "CentrifugeWebSocket"]

_Messages = list[dict[str, Any]]

CONNECT_TIMEOUT_S: Final = 10.0
EARLY_MAX_BYTES: Final = 65_536  # of messages that wait for the reply to `connect`
_BAD_TOKEN: Final = frozenset(("already_authenticated", "invalid_token", "not_authenticated", "revoked"))
_SUBPROTOCOLS: Final = {"centrifuge-json": "json", "centrifuge-protobuf": "protobuf"}
_RESULTS: Final[Mapping[str, Callable[[Any], dict[str, Any]]]] = {
    "history": replies.history,
    "presence": replies.presence,
    "presence_stats": replies.stats,
    "sub_refresh": replies.tokens_end,
}


class CentrifugeHandler:
    """Connects Centrifuge clients to the registry of a WebSocketHandler, by its rules."""

    def __init__(self, websockets: WebSocketHandler) -> None:
        self._websockets = websockets

    def routes(self, path: str = "/connection/websocket") -> list[web.RouteDef]:
        """Make the route for an aiohttp application."""
        return [web.get(path, self._handle, allow_head=False)]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        is_personal = self._websockets.public.centrifuge_personal_channels
        return await self._websockets.handle(
            request, CentrifugeWebSocket, form=_form_of(request), has_personal_channel=is_personal
        )


class CentrifugeWebSocket(WebSocketProtocol):
    """One client; the `Frontend` of its connection."""

    __slots__ = ("_connect", "_deadline", "_early", "_early_bytes", "_form", "_has_personal_channel", "ping_frame")

    transport_name = "centrifuge"
    can_deflate = False
    subprotocols: Mapping[str, Encoding] = dict.fromkeys(_SUBPROTOCOLS, Encoding.JSON)
    accepts_orders = True

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
        self._connection.frontend = self
        self._form = FORMS[form]
        self.ping_frame = self._connection.dialect.frame(self._form.ping)
        self._has_personal_channel = has_personal_channel
        self._connect: Command | None = None  # the command `connect`, once it has come
        self._early: list[bytes] | None = []  # frames that wait for the reply to it; None = it is answered
        self._early_bytes = 0
        self._deadline = asyncio.get_running_loop().call_later(CONNECT_TIMEOUT_S, self._on_stale)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything."""
        self._deadline.cancel()
        super().connection_lost(exc)

    def close_frame(self, code: int, reason: str) -> bytes:
        """Encode the end of the connection for clients of this protocol."""
        return close_frame(codes.disconnect_of(code, reason), reason)

    def _on_stale(self) -> None:
        if self._connect is None:
            self._connection.close(CloseCode.AUTHENTICATION_TIMEOUT, "stale")

    # -- commands ------------------------------------------------------------------------------------------------

    def _on_frame(self, opcode: int, payload: bytes) -> Iterator[None] | None:
        if opcode != self._connection.dialect.opcode or self._connection.is_closed:
            return super()._on_frame(opcode, payload)
        self._endpoint.count_message(len(payload), self.transport_name)
        return self._work_off(payload)

    def _work_off(self, frame: bytes) -> Iterator[None]:
        """Process the commands of a frame; yields after each. Raises ProtocolFault."""
        try:
            for value, size in self._form.read(frame):
                command = command_of(value)
                if command is None:
                    self._on_pong()
                else:
                    self._process(command, size)
                if self._connection.is_closed:
                    return
                yield
        except InvalidMessage as error:
            self._endpoint.node.metrics.client_errors.labels(error.code).inc()
            self._connection.close(Disconnect.BAD_REQUEST, "bad request")

    def _on_pong(self) -> None:
        if self._is_pong_due:
            self._is_pong_due = False
        else:
            self._count_frame()

    def _process(self, command: Command, size: int) -> None:
        """Process a command. size: its bytes. Raises InvalidMessage."""
        if (command.method == "connect") is not (self._connect is None):
            self._connection.close(Disconnect.BAD_REQUEST, "bad request")
            return
        if command.method == "connect":
            self._connect = command
            self._deadline.cancel()
            if not command.params.get("token"):
                self._write(self._connected({}))
                return
        if command.method == "send":
            self._connection.close(Disconnect.NOT_AVAILABLE, "not available")
            return
        if command.method == "ping":
            self._reply(command.id, "ping", {})
            return
        try:
            envelopes = envelopes_of(command, is_subscribed=self._is_subscribed(command.params.get("channel")))
        except Unavailable:
            self._reply(command.id, "error", codes.error(ErrorCode.METHOD_NOT_FOUND))
            return
        for envelope in envelopes:
            self._endpoint.registry.accept(self._connection, envelope, size)

    # -- Frontend ------------------------------------------------------------------------------------------------

    def translate(self, envelope: Mapping[str, Any]) -> bytes | None:
        """See `Frontend`."""
        message = envelope["message"]
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "response" and (call := Call.read(message.get("callId"))) is not None:
            if call.method == "connect":
                return self._connected(message["data"])
            return self._after_connect(self._response(call, message["data"]))
        if kind == "error" and (call := Call.read(message["callId"])) is not None:
            return self._after_connect(self._error(call, message["code"], message["message"]))
        if envelope["service"] == PUBSUB and kind == "subscribed":
            return self._after_connect(self._subscribed_by_order(message))
        if envelope["service"] == PUBSUB and kind == "unsubscribed":
            return self._after_connect([push(message["channel"], "unsubscribe", codes.unsubscribe_of(message))])
        return None

    def _response(self, call: Call, data: Any) -> _Messages:
        """Build the reply to a command that succeeded, and the pushes that follow it."""
        if call.is_silent:
            return []
        if call.method == "subscribe":
            if call.rejects_unrecovered and call.since is not None and not data.get("recovered"):
                self._endpoint.registry.accept(self._connection, unsubscribing(call.channel), 0)
                return [_reply(call.id, "error", codes.error(ErrorCode.UNRECOVERABLE_POSITION))]
            return [_reply(call.id, call.method, replies.subscribed(data, call)), *self._join(call.channel)]
        if call.method == "rpc":
            return [_reply(call.id, call.method, {"data": payload_of(encode_json(data))})]
        if call.method == "refresh":
            return [_reply(call.id, call.method, self._about(data))]
        make = _RESULTS.get(call.method)
        return [_reply(call.id, call.method, {} if make is None else make(data))]

    def _error(self, call: Call, code: str, text: str) -> _Messages:
        """Build the reply to a command that failed."""
        if call.is_silent:
            return []
        if call.method == "unsubscribe":  # clients connect again after an error
            return [_reply(call.id, call.method, {})]
        if call.method not in ("connect", "refresh"):
            return [_reply(call.id, "error", codes.error_of(code, text))]
        is_refused = code in _BAD_TOKEN
        if is_refused and text != "Token expired":
            self._connection.close(CloseCode.BAD_TOKEN, "invalid token")
            return []
        error = codes.error(ErrorCode.TOKEN_EXPIRED) if is_refused else codes.error_of(code, text)
        self._write(self._form.encode(_reply(call.id, "error", error)))
        if call.method == "connect":
            self._connection.close(Disconnect.EXPIRED if is_refused else Disconnect.SERVER_ERROR, "connect failed")
        return []

    # -- inner ---------------------------------------------------------------------------------------------------

    def _connected(self, data: Mapping[str, Any]) -> bytes:
        """Encode the reply to `connect`, and what has waited for it. data: of the response to `authenticate`."""
        assert self._connect is not None  # noqa: S101 - for the type checker: it is what was answered
        early, self._early = self._early or (), None
        self._endpoint.node.control.subscriptions.subscribe_by_token(self._connection, PUBSUB, self._own_channels())
        fields = self._about(data) | {
            "ping": max(1, math.ceil(self._endpoint.wheel.interval_s)),
            "pong": True,
            "session": self._connection.id,
            "node": self._endpoint.node.node_id,
        }
        return self._form.join((self._form.encode(_reply(self._connect.id, "connect", fields)), *early))

    def _own_channels(self) -> list[str]:
        """Return the channels that the server subscribes the client to."""
        connection, claims = self._connection, self._connection.claims
        personal = [f"#{connection.identity}"] if self._has_personal_channel and connection.identity else []
        listed, described = claims.get("channels"), claims.get("subs")  # an object `channels` is about permissions
        named = [*(listed if isinstance(listed, list) else ()), *(described if isinstance(described, dict) else ())]
        return list(dict.fromkeys((*personal, *filter(_is_channel, named))))[
            : self._endpoint.node.limits.channels_per_connection
        ]

    def _about(self, data: Mapping[str, Any]) -> dict[str, Json]:
        return {"client": self._connection.id, "version": f"snorky {__version__}", **replies.tokens_end(data)}

    def _is_subscribed(self, channel: Any) -> bool:
        try:
            return isinstance(channel, str) and channel_key(PUBSUB, channel) in self._connection.channels
        except InvalidChannel:  # the service will refuse it
            return False

    def _subscribed_by_order(self, message: Mapping[str, Any]) -> _Messages:
        """Build the pushes for a subscription that the backend has made, and for the messages that come with it."""
        channel = message["channel"]
        missed = [push(channel, "pub", each) for each in replies.publications(message.get("messages", ()))]
        return [push(channel, "subscribe", replies.place(message)), *self._join(channel), *missed]

    def _join(self, channel: str) -> _Messages:
        """Build the client's own join, if its channel notifies of joins: it was sent before the client subscribed."""
        if not self._endpoint.registry[PUBSUB].sends_presence_events(channel):
            return []
        connection = self._connection
        return [push(channel, "join", {"info": client_info(connection.identity, connection.id)})]

    def _after_connect(self, messages: _Messages) -> bytes | None:
        """Encode messages if `connect` is answered; else keep them until then."""
        if not messages:
            return None
        encoded = self._form.join(map(self._form.encode, messages))
        if self._early is None:
            return encoded
        self._early_bytes += len(encoded)
        if self._early_bytes > EARLY_MAX_BYTES:
            self._connection.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
        self._early.append(encoded)
        return None

    def _reply(self, number: int, kind: str, content: Mapping[str, Any]) -> None:
        encoded = self._after_connect([_reply(number, kind, content)])
        if encoded is not None:
            self._write(encoded)

    def _write(self, encoded: bytes) -> None:
        self._connection.write_reply(self._connection.dialect.frame(encoded))


def _reply(number: int, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Build a reply. kind: the method, or "error"."""
    return {"id": number, kind: content}


def _is_channel(name: Any) -> bool:
    """Return True if a claim names a channel that clients of this protocol can have."""
    try:
        return isinstance(name, str) and bool(name) and bool(channel_name(name))
    except InvalidChannel:
        return False


def _form_of(request: web.Request) -> str:
    """Return the form that a client asks for, by its subprotocol or its URL."""
    offer = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ()))
    named = [_SUBPROTOCOLS[name] for each in offer.split(",") if (name := each.strip()) in _SUBPROTOCOLS]
    asked = (request.query.get("format"), request.query.get("cf_protocol"))
    return named[0] if named else "protobuf" if "protobuf" in asked else "json"
