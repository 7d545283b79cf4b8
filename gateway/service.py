"""Service: what answers messages addressed to its name.

A service lives in a ServiceRegistry and knows the cluster only through its primitives (`topics`, `rosters`,
`names`, `direct`, `tokens`), so one written for a single process works on any number of nodes. Subclass
`Service` for a protocol of your own, or `services.rpc.RPCService` for commands with replies.

Rules for authors:
- Methods run on the event loop: what blocks goes to a thread (`asyncio.to_thread`).
- Messages of one connection come one after another: the next waits until the awaitable that `on_message`
  returned is done. Other connections do not wait.
- State of one client goes into `connection.data[self.name]`, never into the service: the client may be on
  another node tomorrow.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable
from typing import Any

from gateway.codec import PAYLOAD, encode
from gateway.compound import Compound
from gateway.connection import Connection
from gateway.directory import Member
from gateway.errors import CloseCode, ConfigurationError
from gateway.frames import Dialect
from gateway.primitives import Cluster, Direct, Names, Rosters, Tokens
from gateway.publication import Position, Selector
from gateway.rules import Rules
from gateway.topics import Topics

__all__ = ["Service"]

_NAME = re.compile(r"[a-z0-9_-]+")


class Service(ABC):
    """Answers the messages addressed to `name`. name: [a-z0-9_-]+, unique in its registry."""

    is_open = False  # also to who has not said who they are, where the registry requires an identity

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"service name {name!r}: use lower-case letters, digits, '-' and '_'")
        self.name = name
        self._cluster: Cluster | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def topics(self) -> Topics:
        """The channels of this service."""
        return Topics(self.cluster, self.name, self.notification, self.gap_notice)

    @property
    def rosters(self) -> Rosters:
        """Who is in which of its channels; an entry may carry data."""
        return Rosters(self.cluster, self.name)

    @property
    def names(self) -> Names:
        """Names of this service, each held by one connection of the cluster."""
        return Names(self.cluster, self.name)

    @property
    def direct(self) -> Direct:
        """Messages to one connection, wherever it is."""
        return Direct(self.cluster, self.name)

    @property
    def tokens(self) -> Tokens:
        """Values kept for a while under a token, to be taken once."""
        return Tokens(self.cluster)

    @property
    def cluster(self) -> Cluster:
        """The cluster; there once the registry belongs to a node."""
        if self._cluster is None:
            raise ConfigurationError(f"{self!r} is not on a node yet: give its registry to one (Node.attach)")
        return self._cluster

    @property
    def rules(self) -> Rules:
        """What is done with this service's channels; the defaults with all of them unless overridden."""
        return Rules()

    def bind(self, cluster: Cluster) -> None:
        """Learn which cluster this service is part of, for good. Raises ConfigurationError: it is another one's."""
        if self._cluster is not None and self._cluster is not cluster:
            raise ConfigurationError(f"{self!r} is on another node already; make another one")
        self._cluster = cluster

    def on_connect(self, connection: Connection) -> None:  # noqa: B027 - an optional hook
        """Know that a client has come."""

    def on_disconnect(self, connection: Connection) -> None:  # noqa: B027 - an optional hook
        """Know that a client has gone. Its subscriptions end by themselves; nothing can be sent to it."""

    @abstractmethod
    def on_message(self, connection: Connection, message: Any) -> Awaitable[None] | None:
        """Answer one message. message: any JSON entity, already checked.

        A plain method answers at once; a coroutine is awaited before the connection's next message. An
        error of gateway.errors is told to the client, any other is logged and told as `Internal error`.
        """

    def notification(self, channel: Any) -> Any:
        """Shape what subscribers of a channel receive: a JSON entity with `PAYLOAD` where the payload stands."""
        return PAYLOAD

    def gap_notice(self, channel: Any, position: Position) -> Any:
        """Shape what a subscriber that asked to recover is told when live delivery had a hole: a JSON entity.

        position: where the channel goes on.
        """
        return {"type": "gap", "channel": channel, "position": str(position)}

    def roster_notice(
        self, channel: Any, member: Member, *, has_joined: bool, is_identity: bool
    ) -> tuple[Any, Selector] | None:
        """Say what a channel's subscribers are told when a member has come or gone; None = nothing.

        is_identity: it was its identity's first or last entry there. Returns the payload and who gets it. Must
        need nothing but its arguments: it is asked for members of dead nodes too.
        """
        return None

    def roster_update(self, channel: Any, member: Member) -> tuple[Any, Selector] | None:
        """Say what a channel's subscribers are told when a member's data has changed; None = nothing.

        For when they may have missed the notice that `Rosters.update` had. Else as `roster_notice`.
        """
        return None

    def has_roster_notices(self, channel: Any) -> bool:
        """Tell whether a channel's subscribers hear who comes and goes; then they do also if their node was deaf."""
        return type(self).roster_notice is not Service.roster_notice

    def send(self, connection: Connection, message: Any) -> None:
        """Send one message to one connection. message: any JSON entity. Raises ReplyTooLarge."""
        connection.send({"service": self.name, "message": message})

    def framed(self, connection: Connection, message: Any) -> bytes:
        """Make what `Connection.write_reply` writes of one message. message: any JSON entity. Raises ReplyTooLarge."""
        return connection.framed({"service": self.name, "message": message})

    def send_compound(self, connection: Connection, message: Any, compound: Compound, instead: Any = None) -> None:
        """Send one message with payloads in it that are encoded already. message: has `compound.value` in it.

        With it goes what follows it. instead: what is sent if the connection has no room for it all. Raises
        ReplyTooLarge.
        """
        dialect = connection.dialect
        encoded = compound.encode({"service": self.name, "message": message}, dialect.encoding)
        frames = b"".join(map(dialect.frame, (encoded, *compound.followers(self.name, dialect.encoding))))
        if instead is not None and not connection.has_room(len(frames)):
            self.send(connection, instead)
        else:
            connection.write_reply(frames)

    def send_to_all(self, connections: Iterable[Connection], message: Any) -> None:
        """Send one message to many connections of this node: encoded once per encoding. message: any JSON entity."""
        frames: dict[Dialect, bytes] = {}
        for connection in connections:
            dialect = connection.dialect
            frame = frames.get(dialect)
            if frame is None:
                encoded = encode({"service": self.name, "message": message}, dialect.encoding)
                frame = frames[dialect] = dialect.frame(encoded)
            try:
                connection.write(frame)
            except Exception:  # one wire's fault must not keep the others waiting
                connection.close(CloseCode.INTERNAL_ERROR, "Internal error")
