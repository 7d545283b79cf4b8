"""CentrifugeClient: one client, whatever its transport: takes its commands, and translates what services send to it.

Rules:
- The first command is `connect`. Until it is answered, the client gets nothing else: replies wait here, and what its
  channels receive waits in the connection.
- The server's subscriptions, by the client's token, are made before the reply to `connect`, which contains them.
- After a failed `connect` the connection is closed, at once: later commands must have no effect.
- Each command counts against the client's limits.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import structlog

from snorky.gateway._version import __version__
from snorky.gateway.connection.connection import SERVER_SIDE, Connection
from snorky.gateway.errors import CloseCode, InvalidChannel, InvalidMessage
from snorky.gateway.http.protocols.centrifuge import codes, replies
from snorky.gateway.http.protocols.centrifuge.codes import Disconnect, ErrorCode
from snorky.gateway.http.protocols.centrifuge.commands import (
    Call,
    Command,
    Unavailable,
    envelope_of,
    positions_of,
)
from snorky.gateway.http.protocols.centrifuge.description import Description
from snorky.gateway.http.protocols.centrifuge.forms import Form, json_of
from snorky.gateway.http.protocols.centrifuge.rendering import PUBSUB, client_info, push
from snorky.gateway.http.websocket.protocol import Endpoint
from snorky.gateway.protocol.attributes import ATTRIBUTES
from snorky.gateway.protocol.codec import Envelope, Json, channel_key, channel_name

__all__ = ["EMULATION", "CentrifugeClient", "Wire"]

_log = structlog.get_logger("snorky.centrifuge")

_Messages = list[dict[str, Any]]

EMULATION: Final = " emulation"  # in place of a service, which cannot have this name
SUBSCRIBE_TIMEOUT_S: Final = 5.0  # of the server's subscriptions; those that take longer are pushed later
_BAD_TOKEN: Final = frozenset(("already_authenticated", "invalid_token", "not_authenticated", "revoked"))
_RESULTS: Final[Mapping[str, Callable[[Any], dict[str, Any]]]] = {
    "history": replies.history,
    "presence": replies.presence,
    "presence_stats": replies.stats,
    "sub_refresh": replies.tokens_end,
}


class Wire(Protocol):
    """The transport of a connection. is_full: it accepts no bytes now, and resumes the connection later."""

    @property
    def is_full(self) -> bool: ...

    @property
    def write(self) -> Callable[[bytes], object]:
        """Accepts bytes, also while the connection queues its writes."""

    def take_commands(self, message: Any) -> bool:
        """Process later commands that came by another node; False = they are refused."""


class CentrifugeClient:
    """The `Frontend` of a connection. wire: its transport. session: what later requests present; "" = a WebSocket."""

    __slots__ = (
        "_command",
        "_connection",
        "_description",
        "_early",
        "_early_bytes",
        "_endpoint",
        "_form",
        "_has_personal_channel",
        "_is_authenticated",
        "_session",
        "_since",
        "_subs",
        "_subs_bytes",
        "_task",
        "_wire",
    )

    authenticates = False  # see `Frontend`

    def __init__(
        self,
        endpoint: Endpoint,
        connection: Connection,
        form: Form,
        *,
        has_personal_channel: bool,
        wire: Wire,
        session: str = "",
    ) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._form = form
        self._has_personal_channel = has_personal_channel
        self._wire = wire
        self._session = session
        self._command: Command | None = None  # `connect`, once it has come
        self._is_authenticated = False
        self._early: list[bytes] | None = []  # messages that wait for the reply to it; None = it is answered
        self._early_bytes = 0
        self._since: dict[str, tuple[int, str]] = {}  # from where it recovers the server's subscriptions
        self._subs: dict[str, Any] | None = None  # the server's subscriptions, while they are made
        self._subs_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._description = Description(connection, endpoint.node.auth.grants)

    @property
    def has_begun(self) -> bool:
        """True once the client has sent `connect`."""
        return self._command is not None

    @property
    def has_answered(self) -> bool:
        """True once `connect` is answered."""
        return self._early is None

    def stop(self) -> None:
        """Cancel what is in progress: the connection has ended."""
        if self._task is not None:
            self._task.cancel()

    # -- commands ------------------------------------------------------------------------------------------------

    def process(self, command: Command, size: int) -> None:
        """Process a command. size: its bytes. Raises InvalidMessage: the connection must be closed."""
        if (command.method == "connect") is not (self._command is None):
            raise InvalidMessage("connect comes first, and once")
        if command.method == "connect":
            self._begin(command, size)
            return
        counted = Envelope(PUBSUB, {"callId": Call(command.id, command.method).written()})
        if command.method == "send":
            self._connection.close(Disconnect.NOT_AVAILABLE, "not available")
        elif command.method == "ping":
            if self._endpoint.registry.admits(self._connection, counted, size):
                self._tell([_reply(command.id, "ping", {})])
        elif command.method == "subscribe" and self._is_server_side(command.params.get("channel")):
            if self._endpoint.registry.admits(self._connection, counted, size):
                self._tell([_reply(command.id, "error", codes.error(ErrorCode.ALREADY_SUBSCRIBED))])
        else:
            self._call(command, counted, size)

    def _begin(self, command: Command, size: int) -> None:
        self._since = positions_of(command)
        if command.params.get("token"):
            envelope = envelope_of(command)
            self._command = command
            self._endpoint.registry.accept(self._connection, envelope, size)
            return
        self._command = command
        if self._endpoint.registry.requires_identity and self._connection.identity is None:
            self._connection.close(CloseCode.BAD_TOKEN, "a token is required")
        else:
            self._authenticated({})

    def _call(self, command: Command, counted: Envelope, size: int) -> None:
        registry = self._endpoint.registry
        try:
            envelope = envelope_of(command)
        except Unavailable:
            if registry.admits(self._connection, counted, size):
                self._tell([_reply(command.id, "error", codes.error(ErrorCode.METHOD_NOT_FOUND))])
        except InvalidMessage as error:
            if registry.admits(self._connection, counted, size):
                registry.refuse(self._connection, error, counted)
        else:
            registry.accept(self._connection, envelope, size)

    def _is_server_side(self, channel: Any) -> bool:
        grants = self._connection.grants
        try:
            return grants is not None and grants.get(channel_key(PUBSUB, channel)) is SERVER_SIDE
        except InvalidChannel:  # the service will refuse it
            return False

    # -- Frontend ------------------------------------------------------------------------------------------------

    def accepts_order(self, channel: Json) -> bool:
        """See `Frontend`: names of channels are texts in this protocol."""
        return self._is_authenticated and isinstance(channel, str)

    def recovers_from(self, channel: Json) -> str | None:
        """See `Frontend`."""
        found = self._since.get(channel) if isinstance(channel, str) else None
        return None if found is None else found[1]

    def description(self, channel: Json) -> Json:
        """See `DescribesClient`."""
        return self._description.entry(channel)

    def attributes(self, channel: Json) -> bytes:
        """See `DescribesClient`."""
        return self._description.attributes(channel)

    def take(self, envelope: Mapping[str, Any]) -> bool | None:
        """See `Frontend`: later commands of a client without a WebSocket."""
        return self._wire.take_commands(envelope["message"]) if envelope["service"] == EMULATION else None

    def translate(self, envelope: Mapping[str, Any]) -> bytes | None:
        """See `Frontend`."""
        message = envelope["message"]
        kind = message.get("type") if isinstance(message, dict) else None
        if kind in ("response", "error"):
            call = Call.read(message.get("callId"))
            if call is None:
                return None
            if kind == "error":
                return self._after_connect(self._error(call, message["code"], message["message"]))
            if call.method == "connect":
                self._authenticated(message["data"])
                return None
            return self._after_connect(self._response(call, message["data"]))
        if envelope["service"] == PUBSUB and kind == "subscribed":
            return self._after_connect(self._subscribed_by_server(message))
        if envelope["service"] == PUBSUB and kind == "unsubscribed":
            return self._after_connect([push(message["channel"], "unsubscribe", codes.unsubscribe_of(message))])
        return None

    def _response(self, call: Call, data: Any) -> _Messages:
        """Build the reply to a command that succeeded, and the pushes that follow it."""
        if call.method == "subscribe":
            if call.rejects_unrecovered and call.since is not None and not data.get("recovered"):
                self._endpoint.registry[PUBSUB].cut_subscription(self._connection, call.channel)
                return [_reply(call.id, "error", codes.error(ErrorCode.UNRECOVERABLE_POSITION))]
            return [_reply(call.id, call.method, replies.subscribed(data, call.since)), *self._join(call.channel)]
        if call.method == "rpc":
            max_values = self._connection.outbox_max_bytes
            return [_reply(call.id, call.method, {"data": json_of(data, max_values)})]
        if call.method == "refresh":
            return [_reply(call.id, call.method, self._about(data))]
        make = _RESULTS.get(call.method)
        return [_reply(call.id, call.method, {} if make is None else make(data))]

    def _error(self, call: Call, code: str, text: str) -> _Messages:
        """Build the reply to a command that failed."""
        if call.method == "unsubscribe":  # clients connect again after an error
            return [_reply(call.id, call.method, {})]
        if call.method not in ("connect", "refresh"):
            return [_reply(call.id, "error", codes.error_of(code, text))]
        is_expired = text == "Token expired"
        if code in _BAD_TOKEN and not is_expired:
            self._connection.close(_CLOSE_CODES.get(text, CloseCode.BAD_TOKEN), "invalid token")
            return []
        error = codes.error(ErrorCode.TOKEN_EXPIRED) if is_expired else codes.error_of(code, text)
        self._write(self._form.encode(_reply(call.id, "error", error)))
        if call.method == "connect":
            self._connection.close(Disconnect.EXPIRED if is_expired else Disconnect.SERVER_ERROR, "connect failed")
        return []

    # -- connecting ----------------------------------------------------------------------------------------------

    def _authenticated(self, data: Mapping[str, Any]) -> None:
        """Answer `connect`, at once or when the server's subscriptions are made. data: of the response to the token."""
        self._is_authenticated = True
        self._endpoint.node.control.subscriptions.restore(self._connection)
        channels = self._own_channels()
        if not channels:
            self._answer_connect(data)
            return
        self._connection.pause()
        self._subs = dict.fromkeys(channels)
        self._task = asyncio.get_running_loop().create_task(self._subscribe_own(channels, data))

    async def _subscribe_own(self, channels: list[str], data: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(SUBSCRIBE_TIMEOUT_S):
                await self._endpoint.node.control.subscriptions.subscribe_by_token(self._connection, PUBSUB, channels)
        except TimeoutError:
            pass
        except Exception:  # the top of a task: else the client would wait without an end
            _log.exception("subscriptions of a token failed", connection=self._connection.id)
            self._connection.close(CloseCode.INTERNAL_ERROR, "Internal error")
        if self._connection.is_closed:
            return
        self._answer_connect(data)
        if not self._wire.is_full:  # else the transport resumes the connection when it has room
            self._connection.resume()

    def _answer_connect(self, data: Mapping[str, Any]) -> None:
        assert self._command is not None  # noqa: S101 - for the type checker: it is what was asked
        early, self._early = self._early or (), None
        subs, self._subs = self._subs, None
        fields = self._about(data) | {
            "ping": max(1, math.ceil(self._endpoint.wheel.interval_s)),
            "pong": not self._session,  # each pong would be a request
            "session": self._session or self._connection.id,
            "node": self._endpoint.node.node_id,
        }
        if subs:
            fields["subs"] = {channel: result for channel, result in subs.items() if result is not None}
        reply = self._form.encode(_reply(self._command.id, "connect", fields))
        self._wire.write(self._connection.dialect.frame(self._form.join((reply, *early))))

    def _own_channels(self) -> list[str]:
        """Return the channels that the server subscribes the client to."""
        connection, claims = self._connection, self._connection.claims
        personal = f"#{connection.identity}" if self._has_personal_channel and connection.identity else None
        listed, described = claims.get("channels"), claims.get("subs")  # an object `channels` is about permissions
        named = [*(listed if isinstance(listed, list) else ()), *(described if isinstance(described, dict) else ())]
        return list(dict.fromkeys(filter(_is_channel, (personal, *named))))[
            : self._endpoint.node.limits.channels_per_connection
        ]

    def _about(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"client": self._connection.id, "version": f"snorky {__version__}", **replies.tokens_end(data)}

    def _subscribed_by_server(self, message: Mapping[str, Any]) -> _Messages:
        """Build the pushes for a subscription that the server has made; or keep it for the reply to `connect`."""
        channel = message["channel"]
        if self._subs is not None and channel in self._subs:
            since = self._since.get(channel)
            self._subs_bytes += sum(map(_size_of, message.get("messages", ())))
            if self._subs_bytes > self._most_bytes:  # as if they were too many to recover
                message = {**message, "recovered": False, "messages": ()}
            self._subs[channel] = replies.subscribed(message, None if since is None else since[0])
            return self._join(channel)
        missed = [push(channel, "pub", each) for each in replies.publications(message.get("messages", ()))]
        return [push(channel, "subscribe", replies.place(message)), *self._join(channel), *missed]

    def _join(self, channel: str) -> _Messages:
        """Build the client's own join, if its channel notifies of joins: it was sent before the client subscribed."""
        if not self._endpoint.registry[PUBSUB].sends_presence_events(channel):
            return []
        connection = self._connection
        info = client_info(connection.identity, connection.id, self.description(channel))
        return [push(channel, "join", {"info": info})]

    # -- writing -------------------------------------------------------------------------------------------------

    def _after_connect(self, messages: _Messages) -> bytes | None:
        """Encode messages if `connect` is answered; else keep them until then."""
        if not messages:
            return None
        encoded = self._form.join(map(self._form.encode, messages))
        if self._early is None:
            return encoded
        self._early_bytes += len(encoded)
        if self._early_bytes > self._most_bytes:
            self._connection.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
        self._early.append(encoded)
        return None

    @property
    def _most_bytes(self) -> int:
        """The limit of the messages that wait for the reply to `connect`, and of the recovered ones in it."""
        return self._connection.outbox_max_bytes // 2

    def _tell(self, messages: _Messages) -> None:
        encoded = self._after_connect(messages)
        if encoded is not None:
            self._write(encoded)

    def _write(self, encoded: bytes) -> None:
        self._connection.write_reply(self._connection.dialect.frame(encoded))


# by the text of a token's refusal; 4501 for others
_CLOSE_CODES: Final = {"Token not valid yet": CloseCode.RECONNECT, "Revoked": CloseCode.REVOKED}


def _reply(number: int, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Build a reply. kind: the method, or "error"."""
    return {"id": number, kind: content}


def _size_of(message: Mapping[str, Any]) -> int:
    """Return the bytes of a recovered message."""
    return sum(len(message.get(each) or b"") for each in ("message", *ATTRIBUTES))


def _is_channel(name: Any) -> bool:
    """Return True if a claim names a channel that clients of this protocol can have."""
    try:
        return isinstance(name, str) and bool(name) and bool(channel_name(name))
    except InvalidChannel:
        return False
