"""PusherClient: one client, whatever its transport: takes its events, and translates what services send to it.

Rules:
- An app's secret signs who may subscribe to a private or presence channel, and as whom. The rules of the channel decide
  too: the signature counts as a subscription token.
- Client events go to the other subscribers and are not kept.
- Clients do not try a subscription again. So an error that passes closes the connection: they do after they reconnect.
- Each event counts against the client's limits. An operation that is not permitted is refused, and is no bad input:
  pages send client events and subscriptions before they know whether they are permitted.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import structlog

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.connection.connection import Connection
from snorky.gateway.errors import CloseCode, InvalidChannel, InvalidMessage, SnorkyError
from snorky.gateway.http.protocols.pusher.codes import PASSING, ErrorCode, status_of
from snorky.gateway.http.protocols.pusher.counts.local_counts import is_counted
from snorky.gateway.http.protocols.pusher.events import (
    NAME_MAX,
    Event,
    encode_event,
    publication_encoder,
    read_event,
    text_of,
)
from snorky.gateway.http.protocols.pusher.names import ChannelKind, is_channel, kind_of, socket_id_of
from snorky.gateway.http.protocols.pusher.signatures import is_signed
from snorky.gateway.http.protocols.pusher.users.client_watchlist import ClientWatchlist
from snorky.gateway.http.protocols.pusher.users.user_data import object_in, user_id_of
from snorky.gateway.http.websocket.protocol import Endpoint
from snorky.gateway.protocol.attributes import entry_data, infos_in
from snorky.gateway.protocol.codec import Envelope, Json
from snorky.gateway.protocol.foreign import SubscribeTerms
from snorky.gateway.sdk.registry import call_id_of, send_error

__all__ = ["PusherClient"]

_log = structlog.get_logger("snorky.pusher")

ACTIVITY_TIMEOUT_S: Final = 120  # of silence, after which clients send a ping
CLIENT_EVENTS_PER_S: Final = 10.0
_READING: Final = frozenset(("subscribe", "history", "presence"))
_SENDING: Final = _READING | {"publish"}


class _Refused(SnorkyError):
    """A client may not do this."""

    code = "not_authorized"


class PusherClient:
    """The `Frontend` of a connection of one app."""

    __slots__ = ("_app", "_connection", "_counted", "_endpoint", "_members", "_sent_s", "_task", "_user", "_watchlist")

    authenticates = True  # see `Frontend`: by signatures

    def __init__(self, endpoint: Endpoint, connection: Connection, app: PusherApp) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._app = app
        self._members: dict[str, str] = {}  # by presence channel: the client's `user_id`
        self._counted: set[str] | tuple[()] = ()  # channels whose number of subscribers contains this client
        self._sent_s = 0.0  # the time up to which client events are paid for
        self._user: dict[str, Any] | None = None  # `user_data`, once it has signed in
        self._watchlist: ClientWatchlist | None = None  # likewise
        self._task: asyncio.Task[None] | None = None

    def established(self) -> bytes:
        """Encode the first event."""
        data = {"socket_id": socket_id_of(self._connection.id), "activity_timeout": ACTIVITY_TIMEOUT_S}
        return encode_event("pusher:connection_established", data)

    def stop(self) -> None:
        """Cancel what is in progress: the connection has ended."""
        if self._task is not None:
            self._task.cancel()
        if self._watchlist is not None:
            self._watchlist.stop()
        for channel in tuple(self._counted):
            self._uncount(channel)

    # -- events of the client ------------------------------------------------------------------------------------

    def process(self, frame: bytes) -> None:
        """Process an event."""
        registry, size = self._endpoint.registry, len(frame)
        try:
            event = read_event(frame)
        except InvalidMessage as error:
            registry.refuse(self._connection, error)
            return
        envelope = self._envelope(event)
        try:
            self._take(event, envelope, size)
        except _Refused as error:
            if registry.admits(self._connection, envelope, size):
                self._endpoint.node.metrics.client_errors.labels(error.code).inc()
                send_error(self._connection, envelope.service, error, call_id_of(envelope.message))
        except (InvalidChannel, InvalidMessage) as error:
            registry.refuse(self._connection, error, envelope)

    def _envelope(self, event: Event) -> Envelope:
        """Make the envelope of an event, without its parameters. Its `callId` identifies the event in the reply."""
        prefix, _, name = event.name.partition(":")
        name = "client" if event.name.startswith("client-") else name if prefix == "pusher" else ""
        data = event.data if isinstance(event.data, dict) else {}
        channel = event.channel if name == "client" else data.get("channel")
        call_id: Json = [name, channel if isinstance(channel, str) else None]
        return Envelope(self._app.service, {"command": "", "params": {}, "callId": call_id})

    def _take(self, event: Event, envelope: Envelope, size: int) -> None:
        """Process an event. Raises _Refused, InvalidChannel, InvalidMessage."""
        data = event.data if isinstance(event.data, dict) else {}
        if event.name == "pusher:subscribe":
            self._subscribe(data, envelope, size)
        elif event.name == "pusher:unsubscribe":
            self._call(envelope, "unsubscribe", {"channel": _channel_of(data.get("channel"))}, size)
        elif event.name.startswith("client-"):
            self._send(event, envelope, size)
        elif not self._endpoint.registry.admits(self._connection, envelope, size):
            return
        elif event.name == "pusher:ping":
            self._tell(encode_event("pusher:pong", {}))
        elif event.name == "pusher:signin":
            self._sign_in(data)
        elif event.name != "pusher:pong":
            raise InvalidMessage("Unknown event")

    def _call(self, envelope: Envelope, command: str, params: dict[str, Any], size: int) -> None:
        message = {**_message_of(envelope), "command": command, "params": params}
        self._endpoint.registry.accept(self._connection, Envelope(envelope.service, message), size)

    def _subscribe(self, data: Mapping[str, Any], envelope: Envelope, size: int) -> None:
        channel = _channel_of(data.get("channel"))
        terms = self._terms(channel, kind_of(channel), data)
        if terms.lists_members:
            call_id: Json = ["subscribe", channel, terms.member]
            envelope = Envelope(envelope.service, {**_message_of(envelope), "callId": call_id})
        self._call(envelope, "subscribe", {"channel": channel, "token": terms}, size)

    def _terms(self, channel: str, kind: ChannelKind, data: Mapping[str, Any]) -> SubscribeTerms:
        """Decide how the client is subscribed. Raises _Refused, InvalidMessage."""
        connection = self._connection
        if kind.user is not None:
            if self._user is None or kind.user != connection.identity:
                raise _Refused("Sign in as this user first")
            return SubscribeTerms(_READING)
        if not kind.needs_signature:
            if self._endpoint.registry.requires_identity and connection.identity is None:
                raise _Refused("Sign in first, or use a private channel")
            return SubscribeTerms(replays_last=kind.is_cache)
        described = data.get("channel_data") if kind.is_presence else None
        signed = f"{socket_id_of(connection.id)}:{channel}"
        if described is not None:
            signed = f"{signed}:{described}"
        if not is_signed(self._app, signed, data.get("auth")):
            raise _Refused("Invalid signature")
        operations = _SENDING if kind.has_client_events and self._app.client_events else _READING
        if not kind.is_presence:
            return SubscribeTerms(operations, replays_last=kind.is_cache)
        member = self._user if described is None else object_in(described)
        if member is None:
            raise InvalidMessage("A presence channel needs channel_data with a user_id, or a user who has signed in")
        identity = user_id_of(member.get("id" if described is None else "user_id"))
        return SubscribeTerms(
            operations, identity, entry_data(member.get("user_info")), lists_members=True, replays_last=kind.is_cache
        )

    def _send(self, event: Event, envelope: Envelope, size: int) -> None:
        """Send a client event to the other subscribers."""
        channel = _channel_of(event.channel)
        kind = kind_of(channel)
        if not (self._app.client_events and kind.has_client_events):
            raise _Refused("Client events are only for private and presence channels")
        if not self._is_subscribed(channel) or (kind.is_presence and channel not in self._members):
            raise _Refused("Subscribe to the channel first")
        if len(event.name) > NAME_MAX:
            raise InvalidMessage("The event's name is too long")
        if not self._has_turn():
            if self._endpoint.registry.admits(self._connection, envelope, size):
                self._endpoint.node.metrics.limit_hits.labels("client_events").inc()
                self._tell(_error(ErrorCode.CLIENT_EVENT_REFUSED, "Too many client events", channel))
            return
        message: dict[str, Any] = {"event": event.name, "data": text_of(event.data)}
        if kind.is_presence:
            message["user_id"] = self._members[channel]
        webhooks = self._endpoint.node.webhooks
        if webhooks is not None and webhooks.wants(self._app.id, "client_event"):  # it is reported when Redis has it
            call_id: Json = ["client", channel, message]
            envelope = Envelope(envelope.service, {**_message_of(envelope), "callId": call_id})
        self._call(envelope, "relay", {"channel": channel, "message": message}, size)

    def _is_subscribed(self, channel: str) -> bool:
        return f"{self._app.service}:{channel}" in self._connection.channels

    def _has_turn(self) -> bool:
        """Take a client event from a bucket of one second's worth; False: it is empty."""
        now_s = asyncio.get_running_loop().time()
        self._sent_s = max(self._sent_s, now_s - 1.0)
        if self._sent_s + 1 / CLIENT_EVENTS_PER_S > now_s + 1e-9:
            return False
        self._sent_s += 1 / CLIENT_EVENTS_PER_S
        return True

    # -- users ---------------------------------------------------------------------------------------------------

    def _sign_in(self, data: Mapping[str, Any]) -> None:
        text = data.get("user_data")
        signed = f"{socket_id_of(self._connection.id)}::user::{text}"
        if not isinstance(text, str) or not is_signed(self._app, signed, data.get("auth")):
            self._connection.close(CloseCode.BAD_TOKEN, "Invalid signature")
            return
        user = object_in(text)
        identity = user_id_of(user.get("id"))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._identify(identity, user, text))
        else:
            raise InvalidMessage("Sign in once")

    async def _identify(self, identity: str, user: dict[str, Any], text: str) -> None:
        connection, node = self._connection, self._endpoint.node
        watchlist = self._watchlist or ClientWatchlist(node, self._app, connection)
        try:
            await node.auth.identify(connection, identity)
            refusal = await watchlist.enter(identity)
            self._user, self._watchlist = user, watchlist
            self._tell(encode_event("pusher:signin_success", {"user_data": text}))
            for each in (refusal, watchlist.watch(user.get("watchlist"))):
                if each is not None:
                    self._tell(_error(*each))
        except SnorkyError as error:
            is_passing = error.code in PASSING
            connection.close(CloseCode.INTERNAL_ERROR if is_passing else CloseCode.BAD_TOKEN, f"{error.code}: {error}")
        except Exception:  # the top of a task: else the client would wait without an end
            _log.exception("a user's sign-in failed", connection=connection.id)
            connection.close(CloseCode.INTERNAL_ERROR, "Internal error")

    # -- Frontend ------------------------------------------------------------------------------------------------

    def accepts_order(self, channel: Json) -> bool:
        """See `Frontend`: clients have no use for a subscription that they did not ask for."""
        return False

    def recovers_from(self, channel: Json) -> None:
        """See `Frontend`."""

    def take(self, envelope: Mapping[str, Any]) -> bool | None:
        """See `Frontend`: there is nothing of the kind."""
        return None

    def translate(self, envelope: Mapping[str, Any]) -> bytes | None:
        """See `Frontend`."""
        message = envelope["message"]
        kind = message.get("type") if isinstance(message, dict) else None
        if kind == "unsubscribed" and envelope["service"] == self._app.service:
            self._members.pop(message["channel"], None)
            self._uncount(message["channel"])
            return _subscription_error(message["channel"], message["code"], message["reason"])
        if kind not in ("response", "error"):
            return None
        call_id = message.get("callId")
        name, channel, *more = call_id if isinstance(call_id, list) and len(call_id) > 1 else ("", None)
        if name == "unsubscribe":
            if channel is not None and not self._is_subscribed(channel):
                self._members.pop(channel, None)
                self._uncount(channel)
            return None
        if kind == "error":
            return self._refused(name, channel, message["code"], message["message"])
        if name == "client" and more:
            self._report("client_event", channel, **more[0], socket_id=socket_id_of(self._connection.id))
        if name != "subscribe" or channel is None:
            return None
        if more:
            self._members[channel] = more[0]
        self._count(channel)
        return self._subscribed(channel, message["data"])

    def _subscribed(self, channel: str, data: Any) -> bytes:
        """Encode that the client is subscribed, and the event that the channel has kept."""
        found = data if isinstance(data, dict) else {}
        about: dict[str, Any] = {}
        if "members" in found:
            members = {name: infos_in(data)[0] for name, data in found["members"].items()}
            about = {"presence": {"count": len(members), "ids": list(members), "hash": members}}
        succeeded = encode_event("pusher_internal:subscription_succeeded", about, channel)
        if not kind_of(channel).is_cache:
            return succeeded
        kept = [each["message"] for each in found.get("messages", ()) if not each.get("tombstone")]
        if kept:
            self._tell(succeeded)
            return publication_encoder(channel)(kept[-1], None, b"")
        if found.get("isEmpty", True):
            self._tell(succeeded)
            if "isEmpty" in found:  # else the client may not read what the channel keeps
                self._report("cache_miss", channel)
            return encode_event("pusher:cache_miss", "", channel)
        return succeeded

    def _refused(self, name: str, channel: str | None, code: str, text: str) -> bytes | None:
        """Encode a refusal; or close, if the client would not try again although it should."""
        if name == "subscribe" and channel is not None:
            if code == "already_subscribed":
                return _error(None, f"Existing subscription to channel {channel}")
            if code in PASSING:
                self._connection.close(CloseCode.INTERNAL_ERROR, f"{code}: {text}")
                return None
            return _subscription_error(channel, code, text)
        refused = name == "client" and code in ("rate_limited", "not_authorized")
        return _error(ErrorCode.CLIENT_EVENT_REFUSED if refused else None, text, channel if name == "client" else None)

    def _report(self, name: str, channel: str | None, **about: str) -> None:
        """Send an event to the app's webhook, if it has one."""
        if (webhooks := self._endpoint.node.webhooks) is not None:
            webhooks.report(self._app.id, {"name": name, "channel": channel, **about})

    # -- the number of subscribers -------------------------------------------------------------------------------

    def tell_number(self, channel: str, event: bytes) -> None:
        """See `CountedClient`."""
        if channel in self._counted:
            self._connection.write(self._connection.dialect.frame(event))

    def _count(self, channel: str) -> None:
        """Count this client as a subscriber."""
        webhooks = self._endpoint.node.webhooks
        if not self._app.subscription_counts or webhooks is None or self._connection.is_closed:
            return
        if is_counted(channel):
            self._counted = self._counted or set()
            self._counted.add(channel)
            webhooks.count(self._app.id, channel, self, is_subscribed=True)

    def _uncount(self, channel: str) -> None:
        webhooks = self._endpoint.node.webhooks
        if isinstance(self._counted, set) and channel in self._counted and webhooks is not None:
            self._counted.discard(channel)
            webhooks.count(self._app.id, channel, self, is_subscribed=False)

    def _tell(self, event: bytes) -> None:
        self._connection.write_reply(self._connection.dialect.frame(event))


def _message_of(envelope: Envelope) -> dict[str, Any]:
    return envelope.message if isinstance(envelope.message, dict) else {}


def _channel_of(name: object) -> str:
    if not is_channel(name):
        raise InvalidChannel("A channel's name has 1 to 200 of A-Z a-z 0-9 _ - = @ , . ;")
    return str(name)


def _subscription_error(channel: str, code: str, text: str) -> bytes:
    status = status_of(code)
    kind = "AuthError" if status == 401 else "LimitReached" if status == 413 else "Error"
    return encode_event("pusher:subscription_error", {"type": kind, "error": text, "status": status}, channel)


def _error(code: ErrorCode | None, text: str, channel: str | None = None) -> bytes:
    """Encode `pusher:error`."""
    return encode_event("pusher:error", {"code": code, "message": text}, channel)
