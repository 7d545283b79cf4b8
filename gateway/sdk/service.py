"""Service: the base class of services, which answer messages addressed to their name.

A service is registered in a ServiceRegistry and uses the cluster only through its primitives (`topics`, `rosters`,
`names`, `direct`, `tokens`), so a service written for one process works on any number of nodes. Subclass
`Service` for a custom protocol, or `snorky.services.rpc.RPCService` for commands with replies.

Rules for authors:
- Methods run on the event loop: run blocking code in a thread (`asyncio.to_thread`).
- Messages of one connection are processed one after another: the next waits until the awaitable that `on_message`
  returned is done. Other connections do not wait.
- Store the state of a client in `connection.data[self.name]`, not in the service: it is discarded with the
  connection, and the client may reconnect to another node.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Any, ClassVar

import structlog

from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.connection.connection import SERVER_SIDE, Connection
from snorky.gateway.contracts.directory import Member
from snorky.gateway.contracts.hooks import Operation, Question
from snorky.gateway.errors import CloseCode, ConfigurationError, NotSubscribed, ReplyTooLarge, SnorkyError
from snorky.gateway.permissions.access import Access
from snorky.gateway.protocol.codec import Encoding, channel_key, channel_of
from snorky.gateway.protocol.publication import Position, Selector
from snorky.gateway.protocol.responses import Responses
from snorky.gateway.protocol.splicing import PAYLOAD, Compound
from snorky.gateway.protocol.ws_frames import Dialect
from snorky.gateway.sdk.handles import Direct, Names, NodeServices, Rosters, Tokens
from snorky.gateway.sdk.old_names import OldAttribute
from snorky.gateway.sdk.topics import Topics

__all__ = ["Service"]

_NAME = re.compile(r"[a-z0-9_-]+")
_JSON = Encoding.JSON  # reading an Enum's attribute is slower than a global

_log = structlog.get_logger("snorky.service")


class Service(ABC):
    """Answers the messages addressed to `name`. name: [a-z0-9_-]+, unique in its registry."""

    allows_anonymous = False  # True: usable without authentication even if the registry requires an identity

    hook_operations: ClassVar[tuple[Operation, ...]] = ()  # for which it calls `ask_backend`

    reloadable_options: ClassVar[tuple[str, ...]] = ()  # keys of its table that `adopt_rules` applies while it runs

    is_open = OldAttribute("allows_anonymous")
    has_roster_notices = OldAttribute("sends_presence_events")

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"service name {name!r}: use lower-case letters, digits, '-' and '_'")
        self.name = name
        self.access: Access[Any] | None = None  # permissions; None: this service has no rules
        self.asks_backend: frozenset[Operation] = frozenset()  # operations that `[hooks]` names this service for
        self._cluster: NodeServices | None = None
        self._is_authenticating = False
        self._responses = Responses(name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def topics(self) -> Topics:
        """The channels of this service."""
        return Topics(self.cluster, self.name, self.notification, self.gap_notice)

    @property
    def rosters(self) -> Rosters:
        """The members of its channels; an entry may have data."""
        return Rosters(self.cluster, self.name)

    @property
    def names(self) -> Names:
        """Names of this service, each owned by at most one connection of the cluster."""
        return Names(self.cluster, self.name)

    @property
    def direct(self) -> Direct:
        """Messages to one connection, on any node."""
        return Direct(self.cluster, self.name)

    @property
    def tokens(self) -> Tokens:
        """Values stored temporarily under a token, which can be taken once."""
        return Tokens(self.cluster)

    @property
    def cluster(self) -> NodeServices:
        """The cluster. Raises ConfigurationError: the registry is not attached to a node yet."""
        if self._cluster is None:
            raise ConfigurationError(f"{self!r} is not attached to a node yet: attach its registry (Node.attach)")
        return self._cluster

    @property
    def rules(self) -> Rules[ChannelRule]:
        """The rules of this service's channels; by default all channels have the defaults."""
        return Rules()

    def bind(self, cluster: NodeServices) -> None:
        """Connect this service to a cluster, permanently. Raises ConfigurationError: it belongs to another one."""
        if self._cluster is not None and self._cluster is not cluster:
            raise ConfigurationError(f"{self!r} belongs to another node already; make another instance")
        self._cluster = cluster
        if cluster.hooks is not None:
            self.asks_backend = frozenset(each for each in self.hook_operations if cluster.hooks.asks(each, self.name))
        self.set_authenticating(is_authenticating=cluster.auth.is_configured)

    def set_authenticating(self, *, is_authenticating: bool) -> None:
        """Set whether clients can have identities, before they connect: if so, what no rule permits is closed."""
        self._is_authenticating = is_authenticating
        if self.access is not None:
            self.access.bind(is_authenticating=is_authenticating)

    def adopt_rules(self, other: "Service") -> None:
        """Replace the rules by those of another instance of this class, which is used for nothing else.

        Called when the settings are read again, if `reloadable_options` differ. Must not raise or wait.
        """
        other.set_authenticating(is_authenticating=self._is_authenticating)
        self.access = other.access

    async def ask_backend(
        self, operation: Operation, client: Connection, channel: Any, message: Any = None, *, is_fresh: bool = False
    ) -> None:
        """Ask the operator's backend whether a client may do this, if `[hooks]` says so. Call it after other checks.

        is_fresh: an earlier answer must not be used. Raises HookRefused; HookUnavailable: the backend gave no usable
        answer.
        """
        if operation not in self.asks_backend or self.cluster.hooks is None:
            return
        question = Question(
            operation=operation,
            identity=client.identity,
            claims=client.claims,
            address=client.remote_ip,
            service=self.name,
            channel=channel,
            message=message,
            is_fresh=is_fresh,
        )
        await self.cluster.hooks.ask(question)

    def on_connect(self, connection: Connection) -> None:  # noqa: B027 - an optional hook
        """Called when a client has connected."""

    def on_disconnect(self, connection: Connection) -> None:  # noqa: B027 - an optional hook
        """Called when a client has gone. Its subscriptions end automatically; nothing can be sent to it."""

    def on_refused_backend(self, connection: Connection, message: Any) -> None:  # noqa: B027 - an optional hook
        """Called instead of `on_message` for a backend whose key may not call this service, such as for an audit log.

        A plain method, which must not send: the backend has its own reply. message: as for `on_message`.
        """

    @abstractmethod
    def on_message(self, connection: Connection, message: Any) -> Awaitable[None] | None:
        """Answer one message. message: any JSON value, already checked.

        A plain method answers at once; a coroutine is awaited before the connection's next message. An
        error of snorky.gateway.errors is sent to the client; any other is logged, and the client receives `Internal
        error`.
        """

    def notification(self, channel: Any) -> Any:
        """Return the message to a channel's subscribers: a JSON value with `PAYLOAD` in place of the payload."""
        return PAYLOAD

    def gap_notice(self, channel: Any, position: Position) -> Any:
        """Return the message that recovering subscribers receive when publications are missing: a JSON value.

        position: delivery continues after it.
        """
        return {"type": "gap", "channel": channel, "position": str(position)}

    def roster_notice(
        self, channel: Any, member: Member, *, has_joined: bool, is_identity: bool
    ) -> tuple[Any, Selector] | None:
        """Return the notice to a channel's subscribers when a member has joined or left; None = send nothing.

        is_identity: the identity's first or last entry there. Returns the payload and its selector. It may use
        only its arguments, because it is also called for members of dead nodes.
        """
        return None

    def roster_update(self, channel: Any, member: Member) -> tuple[Any, Selector] | None:
        """Return the notice to a channel's subscribers when a member's data has changed; None = send nothing.

        Called when subscribers may have missed the notice of `Rosters.update`. Otherwise as `roster_notice`.
        """
        return None

    def sends_presence_events(self, channel: Any) -> bool:
        """True if subscribers receive join and leave events; after an interruption, also those that they missed."""
        return type(self).roster_notice is not Service.roster_notice

    def end_subscription(self, connection: Connection, channel: Any, code: str, reason: str) -> bool:
        """End a client's subscription to a channel, its roster entries included. False = it had none.

        The client is sent {"type": "unsubscribed", "channel", "code", "reason"}, and then nothing more of the channel.
        code: "expired", "revoked", "not_authorized", "unsubscribed"; "gap" for foreign protocols. reason: for people.
        Raises InvalidChannel.
        """
        if not self.cut_subscription(connection, channel):
            return False
        try:
            self.send(connection, {"type": "unsubscribed", "channel": channel, "code": code, "reason": reason})
        except ReplyTooLarge:  # a tiny outbox: the client must learn of it in another way
            connection.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
        return True

    def cut_subscription(self, connection: Connection, channel: Any) -> bool:
        """End a client's subscription as `end_subscription` does, without a notification. False = it had none.

        Override it to discard what else belongs to the subscription.
        """
        try:
            self.topics.unsubscribe(connection, channel)
        except NotSubscribed:
            return False
        with suppress(ConfigurationError):  # a node without a directory has no rosters
            self.rosters.leave_soon(connection, channel)
        return True

    def recheck(self, connection: Connection) -> None:
        """End the subscriptions that rules no longer permit: a client's claims, or the rules, have changed."""
        access, prefix = self.access, f"{self.name}:"
        if access is None:
            return
        for name in [key.removeprefix(prefix) for key in connection.channels if key.startswith(prefix)]:
            rule = access.rules.find(name)
            entered, granted = self.cluster.auth.grants.entered(connection, prefix + name), None
            if entered is not None:  # it may replace the present one, or fail
                granted = entered.operations | (connection.grants or {}).get(prefix + name, frozenset())
            if not access.allows(rule.operations[0], rule, name, connection, granted):
                self.end_subscription(connection, channel_of(name), "not_authorized", "No longer permitted")

    async def recheck_hooks(self, connection: Connection) -> None:
        """Ask the hooks again about a client's subscriptions; end those that they refuse.

        A subscription stays if its hook gives no usable answer, or if the backend has ordered it.
        """
        prefix = f"{self.name}:"
        for key in [key for key in connection.channels if key.startswith(prefix)]:
            channel = channel_of(key.removeprefix(prefix))
            if self.is_server_side(connection, channel):
                continue
            try:
                await self.ask_again(connection, channel)
            except SnorkyError as error:
                if error.code == "unavailable":
                    _log.info("hook gave no answer; the subscription stays", connection=connection.id, key=key)
                else:
                    self.end_subscription(connection, channel, "not_authorized", "No longer permitted")

    def is_server_side(self, connection: Connection, channel: Any) -> bool:
        """Return True if the backend has subscribed a client to a channel. Raises InvalidChannel."""
        grants = connection.grants
        return grants is not None and grants.get(channel_key(self.name, channel)) is SERVER_SIDE

    async def ask_again(self, connection: Connection, channel: Any) -> None:
        """Ask the hooks whether a client may stay subscribed. Raises as they do: SnorkyError, to refuse."""
        await self.ask_backend("subscribe", connection, channel, is_fresh=True)

    def send(self, connection: Connection, message: Any) -> None:
        """Send one message to one connection. message: any JSON value. Raises ReplyTooLarge."""
        connection.send({"service": self.name, "message": message})

    def respond(self, connection: Connection, data: Any, call_id: Any) -> None:
        """Send the reply to a call that has an id. data: any JSON value. Raises InvalidMessage, ReplyTooLarge."""
        dialect = connection.dialect
        is_json = dialect.encoding is _JSON and connection.frontend is None
        encoded = self._responses.encode(data, call_id) if is_json else None
        if encoded is None:
            self.send(connection, {"type": "response", "data": data, "callId": call_id})
        else:
            connection.write_reply(dialect.frame(encoded))

    def framed(self, connection: Connection, message: Any) -> bytes:
        """Encode one message as a frame for `Connection.write_reply`. message: any JSON value. Raises ReplyTooLarge."""
        return connection.framed({"service": self.name, "message": message})

    def send_compound(self, connection: Connection, message: Any, compound: Compound, instead: Any = None) -> None:
        """Send one message that contains encoded payloads, with its followers. message: contains `compound.value`.

        instead: sent if the connection has no room for all of it; None = the connection is closed then. Raises
        ReplyTooLarge.
        """
        frames = connection.framed_compound({"service": self.name, "message": message}, compound)
        if instead is not None and not connection.has_room(len(frames)):
            self.send(connection, instead)
        else:
            connection.write_reply(frames)

    def send_to_all(self, connections: Iterable[Connection], message: Any) -> None:
        """Send one message to many local connections, encoded once per dialect. message: any JSON value."""
        frames: dict[Dialect, bytes] = {}
        for connection in connections:
            dialect = connection.dialect
            frame = frames.get(dialect)
            if frame is None:
                encoded = dialect.encode_notice({"service": self.name, "message": message})
                frame = frames[dialect] = b"" if encoded is None else dialect.frame(encoded)
            try:
                connection.write(frame)
            except Exception:  # an error of one transport must not delay the other connections
                connection.close(CloseCode.INTERNAL_ERROR, "Internal error")
