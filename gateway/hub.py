"""Hub: which local connections subscribe to which channel. Pure: no await, no input, no output.

Rules:
- A channel is here exactly while a local connection subscribes to it, or is about to.
- `connection.channels` and the hub say the same at all times; both change here and nowhere else.
- Connections stand by shape and dialect, because a frame is made once for each and then written to all of a group.
  Two shapes: plain, and with positions, for who asked to recover.
- A connection may be held: it has the channel, but what comes is kept here until `release`. For who is about to be
  told what there is, and must hear of changes behind that. The list that it is told has a version (`knows`), and so has
  each change of the roster: what the list has is not told again, whether it came while the connection was held or comes
  later, for lists and changes come from Redis by different ways.
- A connection may be pending: it has the channel, and gets nothing until `go_live`. For who reads history first.
- Every joining has a number, so that a pass that was lined up before somebody joined can leave it out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.codec import Json, Template
from gateway.connection import Connection
from gateway.errors import AlreadySubscribed, NotSubscribed
from gateway.frames import Dialect
from gateway.publication import Position, Selector

__all__ = ["Channel", "Group", "Groups", "Hub", "News"]

AHEAD: Final = 60_000_000  # microseconds: a list of a version that much later is of a clock that was set back since
LATE_S: Final = 5.0  # a change on its way for longer is told, even twice: the clock of Redis may have been set back

Group = dict[Connection, int]  # and the number of its joining
Groups = dict[Dialect, Group]


@dataclass(frozen=True, slots=True)
class News:
    """What a publication tells of the channel's roster. version: of the roster with it.

    known: who was told a list of at most this version knows it already; 0 = nobody. is_missed: it is told in place of
    what this node did not hear.
    """

    version: int
    known: int = 0
    is_missed: bool = False


class Channel:
    """One channel with local subscribers. key: SERVICE:NAME. template: what its publications look like to clients.

    groups: who gets them plain; positioned: who gets them with positions, and `gap` where there is one. listed: the
    version of the list that a subscriber was told. heard: of the last change of the roster that came.
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
        self.groups: Groups = {}
        self.positioned: Groups = {}
        self.pending: Group = {}
        self.held: dict[Connection, list[tuple[int, bytes]]] | None = None  # there while somebody is held; version or 0
        self.listed: dict[Connection, int] = {}
        self.heard = 0
        self._late_until_s = 0.0
        self.gap: Callable[[Position], Json] | None = None  # there once somebody asked to recover
        self.size = 0

    @property
    def is_congested(self) -> bool:
        """True if a quarter of what may wait for one of its connections waits already."""
        every = (*self.groups.values(), *self.positioned.values())
        return any(each.pending_bytes > each.outbox_max_bytes // 4 for group in every for each in group)

    def audience(self, selector: Selector | None, news: News | None, now_s: float) -> Callable[[Connection], bool]:
        """Say who of the subscribers gets a publication. news: what it tells of the roster."""
        selects = (lambda _: True) if selector is None else selector.selects
        if news is None or not self.listed:
            return selects
        listed, held, version, known, heard = self.listed.get, self.held or {}, news.version, news.known, self.heard
        is_late = now_s < self._late_until_s  # what lists have may be on its way still
        is_missed, ahead = news.is_missed, version + AHEAD

        def chooses(connection: Connection) -> bool:
            if not selects(connection):
                return False
            told = listed(connection)
            if told is None or connection in held:  # `release` looks
                return True
            if is_missed:
                return not version <= told < ahead
            return (not known or told > known) and not (is_late and heard < told >= version)

        return chooses

    def knows(self, connection: Connection, version: int, now_s: float) -> None:
        """Know that a subscriber is told a list of this version in this step of the loop."""
        self.listed[connection] = version
        self._late_until_s = now_s + LATE_S


class Hub:
    """The channels of one node, by key. joined: the number of the last joining."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}
        self.subscriptions = 0
        self.joined = 0

    def __len__(self) -> int:
        return len(self._channels)

    def __contains__(self, key: str) -> bool:
        return key in self._channels

    def get(self, key: str) -> Channel | None:
        """Find a channel that has local subscribers."""
        return self._channels.get(key)

    def add(
        self, connection: Connection, key: str, template: Template, *, is_held: bool = False, is_pending: bool = False
    ) -> int:
        """Subscribe a connection; returns the number of its joining. Raises AlreadySubscribed.

        The template counts for the first one only.
        """
        channels = connection.channels
        if key in channels:
            raise AlreadySubscribed
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(key, template)
        self.joined += 1
        group = channel.pending if is_pending else channel.groups.setdefault(connection.dialect, {})
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
        """True if a connection is pending still, by this joining and no later one."""
        channel = self._channels.get(key)
        return channel is not None and channel.pending.get(connection) == number

    def go_live(self, connection: Connection, key: str, gap: Callable[[Position], Json]) -> None:
        """Let a pending connection have what comes from now on, with positions. gap: shape of the channel's notice."""
        channel = self._channels[key]
        del channel.pending[connection]
        channel.gap = gap
        self.joined += 1
        channel.positioned.setdefault(connection.dialect, {})[connection] = self.joined

    def remove(self, connection: Connection, key: str) -> bool:
        """Unsubscribe a connection; True if it was the channel's last. Raises NotSubscribed."""
        if key not in connection.channels:
            raise NotSubscribed
        channel = self._channels[key]
        if channel.held is not None:
            self.release(connection, key)
        channel.listed.pop(connection, None)
        if connection in channel.pending:
            del channel.pending[connection]
        else:
            dialect = connection.dialect
            is_plain = connection in channel.groups.get(dialect, ())
            groups = channel.groups if is_plain else channel.positioned
            del groups[dialect][connection]
            if not groups[dialect]:
                del groups[dialect]
        channel.size -= 1
        self.subscriptions -= 1
        assert isinstance(connection.channels, set)  # noqa: S101 - a fact for the type checker: it holds a key
        connection.channels.discard(key)
        if channel.size:
            return False
        del self._channels[key]
        return True

    def hold(self, connection: Connection, key: str) -> bool:
        """Hold a connection that has the channel; False = it has not, or is held already."""
        channel = self._channels.get(key)
        if channel is None or key not in connection.channels or connection in (channel.held or ()):
            return False
        channel.held = channel.held or {}
        channel.held[connection] = []
        return True

    def release(self, connection: Connection, key: str) -> list[bytes]:
        """Hold a connection no more; returns what came for it meanwhile, in order, without what its list has."""
        channel = self._channels.get(key)
        if channel is None or channel.held is None:
            return []
        held = channel.held.pop(connection, [])
        channel.held = channel.held or None
        listed = channel.listed.get(connection, 0)
        return [data for version, data in held if version == 0 or version > listed]

    def remove_all(self, connection: Connection) -> list[str]:
        """Unsubscribe a connection from everything; returns the keys of channels that it was the last of."""
        return [key for key in tuple(connection.channels) if self.remove(connection, key)]
