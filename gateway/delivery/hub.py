"""Hub: which local connections subscribe to which channel. Pure: no await and no I/O.

Rules:
- A channel exists here exactly while a local connection is subscribed to it, or is subscribing.
- `connection.channels` and the hub are consistent at all times; only the hub changes either.
- Connections are grouped by form and dialect, because a frame is built once per group and written to all its members.
  There are two forms: plain, and with positions for clients that asked to recover.
- A connection may be held: it is subscribed, but its publications are buffered here until `release`. For a client that
  is about to receive a list and must receive later changes after it. The list has a version (`knows`), and so has
  each change of the roster. A change that the list contains is not sent, whether it arrives while the connection is
  held or later: lists and changes come from Redis by different paths.
- A connection may be pending: it is subscribed, but receives nothing until `go_live`. For a client that first reads
  history.
- Every subscription has a number, so that a pass queued before it can leave the connection out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from snorky.gateway.connection.connection import Connection
from snorky.gateway.delivery.groups import NO_GROUP, Group, Groups
from snorky.gateway.errors import AlreadySubscribed, NotSubscribed
from snorky.gateway.protocol.codec import Json
from snorky.gateway.protocol.publication import Change, Position, Selector
from snorky.gateway.protocol.splicing import Template

__all__ = ["NO_GROUPS", "Channel", "Group", "Groups", "Hub", "RosterEvent"]

AHEAD: Final = 60_000_000  # microseconds: if a list's version is this much later, Redis' clock was set back since
LATE_S: Final = 5.0  # changes delayed more are sent, perhaps twice: the clock of Redis may have been set back

NO_GROUPS: Final = Groups()  # what a channel has until its first subscriber with positions: stays empty


@dataclass(frozen=True, slots=True)
class RosterEvent:
    """A change of the channel's roster that a publication reports. version: of the roster after the change.

    known: clients that received a list of at most this version know the change already; 0 = none do. is_missed: this
    node missed the original notice and sends this one instead. change: for renderings that follow connections.
    """

    version: int
    known: int = 0
    is_missed: bool = False
    change: Change | None = None


class Channel:
    """One channel with local subscribers. key: SERVICE:NAME. template: of its publications to clients.

    groups: plain subscribers; positioned: subscribers with positions and `gap` notices. listed: the
    version of the list that each subscriber received. heard: the version of the last roster change received.
    """

    __slots__ = (
        "_late_until_s",
        "gap",
        "groups",
        "heard",
        "held",
        "key",
        "listed",
        "pending",
        "positioned",
        "size",
        "template",
    )

    def __init__(self, key: str, template: Template) -> None:
        self.key = key
        self.template = template
        self.groups = Groups()
        # A node may have a million channels, most of them with one plain subscriber.
        self.positioned: Groups = NO_GROUPS
        self.pending: Group = NO_GROUP
        self.held: dict[Connection, list[tuple[int, bytes]]] | None = None  # None if none is held; version or 0, data
        self.listed: Group = NO_GROUP  # with the versions of their lists
        self.heard = 0
        self._late_until_s = 0.0
        self.gap: Callable[[Position], dict[str, Json]] | None = None  # set once a client has asked to recover
        self.size = 0

    @property
    def follows_connections(self) -> bool:
        """True if subscribers of its plain form or of that with positions get each change of its roster."""
        return any(each.follows_connections for each in (*self.groups, *self.positioned))

    @property
    def is_congested(self) -> bool:
        """True if the outbox of one of its connections is more than a quarter full."""
        every = (*self.groups.values(), *self.positioned.values())
        return any(each.pending_bytes > each.outbox_max_bytes // 4 for group in every for each in group)

    def audience(
        self, selector: Selector | None, event: RosterEvent | None, now_s: float
    ) -> Callable[[Connection], bool]:
        """Return a predicate: which subscribers receive a publication. event: what it reports about the roster."""
        selects = (lambda _: True) if selector is None else selector.selects
        if event is None or not self.listed:
            return selects
        listed, held, version, known, heard = self.listed.get, self.held or {}, event.version, event.known, self.heard
        is_late = now_s < self._late_until_s  # changes that lists contain may still arrive
        is_missed, ahead = event.is_missed, version + AHEAD

        def chooses(connection: Connection) -> bool:
            if not selects(connection):
                return False
            list_version = listed(connection)
            if list_version is None or connection in held:  # `release` compares versions
                return True
            if is_missed:
                return not version <= list_version < ahead
            return (not known or list_version > known) and not (is_late and heard < list_version >= version)

        return chooses

    def knows(self, connection: Connection, version: int, now_s: float) -> None:
        """Record that a subscriber receives a list of this version in this loop iteration."""
        if self.listed is NO_GROUP:
            self.listed = {}
        self.listed[connection] = version
        self._late_until_s = now_s + LATE_S


class Hub:
    """The channels of one node, by key. joined: the number of the latest subscription."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}
        self.on_removed: Callable[[Connection, str], None] = lambda _connection, _key: None  # a subscription has ended
        self.on_channel: Callable[[str, bool], None] | None = None  # called with its key: True = begins, False = ends
        self.subscriptions = 0
        self.joined = 0

    def __len__(self) -> int:
        return len(self._channels)

    def __contains__(self, key: str) -> bool:
        return key in self._channels

    def get(self, key: str) -> Channel | None:
        """Return a channel, None if it has no local subscribers."""
        return self._channels.get(key)

    def keys(self) -> list[str]:
        """Return the keys of all channels, in no order."""
        return list(self._channels)

    def count(self, key: str) -> int:
        """Return the number of a channel's subscribers; 0 = there is no such channel."""
        channel = self._channels.get(key)
        return 0 if channel is None else channel.size

    def subscribers(self, key: str) -> list[Connection]:
        """Return the subscribers of a channel, also those that are subscribing."""
        channel = self._channels.get(key)
        if channel is None:
            return []
        groups = (*channel.groups.values(), *channel.positioned.values(), channel.pending)
        return [connection for group in groups for connection in group]

    def add(
        self, connection: Connection, key: str, template: Template, *, is_held: bool = False, is_pending: bool = False
    ) -> int:
        """Subscribe a connection; returns the number of this subscription. Raises AlreadySubscribed.

        The template is used only for the channel's first subscriber.
        """
        channels = connection.channels
        if key in channels:
            raise AlreadySubscribed
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(key, template)
            if self.on_channel is not None:
                self.on_channel(key, True)
        self.joined += 1
        if is_pending and channel.pending is NO_GROUP:
            channel.pending = {}
        group = channel.pending if is_pending else channel.groups.of(connection.dialect)
        group[connection] = self.joined
        channel.size += 1
        self.subscriptions += 1
        if is_held:
            channel.held = channel.held or {}
            channel.held[connection] = []
        if isinstance(channels, set):
            channels.add(key)
        else:
            connection.channels = {key}
        return self.joined

    def is_pending(self, connection: Connection, key: str, number: int) -> bool:
        """True if a connection is still pending, by the subscription of this number."""
        channel = self._channels.get(key)
        return channel is not None and channel.pending.get(connection) == number

    def go_live(self, connection: Connection, key: str, gap: Callable[[Position], dict[str, Json]]) -> None:
        """Start delivering to a pending connection, with positions. gap: makes the channel's `gap` notice."""
        channel = self._channels[key]
        del channel.pending[connection]
        channel.gap = gap
        self.joined += 1
        if channel.positioned is NO_GROUPS:
            channel.positioned = Groups()
        channel.positioned.of(connection.dialect)[connection] = self.joined

    def remove(self, connection: Connection, key: str) -> bool:
        """Unsubscribe a connection; True if it was the channel's last subscriber. Raises NotSubscribed."""
        if key not in connection.channels:
            raise NotSubscribed
        channel = self._channels[key]
        if channel.held is not None:
            self.release(connection, key)
        if connection in channel.listed:
            del channel.listed[connection]
        if connection in channel.pending:
            del channel.pending[connection]
        else:
            dialect = connection.dialect
            if not channel.groups.discard(dialect, connection):
                channel.positioned.discard(dialect, connection)
        channel.size -= 1
        self.subscriptions -= 1
        assert isinstance(connection.channels, set)  # noqa: S101 - for the type checker: it contains a key
        connection.channels.discard(key)
        self.on_removed(connection, key)
        if channel.size:
            return False
        del self._channels[key]
        if self.on_channel is not None:
            self.on_channel(key, False)
        return True

    def hold(self, connection: Connection, key: str) -> bool:
        """Hold a subscribed connection; False = it is not subscribed, or is held already."""
        channel = self._channels.get(key)
        if channel is None or key not in connection.channels or connection in (channel.held or ()):
            return False
        channel.held = channel.held or {}
        channel.held[connection] = []
        return True

    def release(self, connection: Connection, key: str) -> list[bytes]:
        """End holding a connection; returns its buffered publications, in order, without those in its list."""
        channel = self._channels.get(key)
        if channel is None or channel.held is None:
            return []
        held = channel.held.pop(connection, [])
        channel.held = channel.held or None
        listed = channel.listed.get(connection, 0)
        return [data for version, data in held if version == 0 or version > listed]

    def remove_all(self, connection: Connection) -> list[str]:
        """Unsubscribe a connection from everything; returns the keys of channels that have no subscriber left."""
        return [key for key in tuple(connection.channels) if self.remove(connection, key)]
