"""Hub: which local connections subscribe to which channel. Pure: no await, no input, no output.

Rules:
- A channel is here exactly while a local connection subscribes to it, or is about to.
- `connection.channels` and the hub say the same at all times; both change here and nowhere else.
- Connections stand by shape and dialect, because a frame is made once for each and then written to all of a group.
  Two shapes: plain, and with positions, for who asked to recover.
- A connection may be held: it has the channel, but what comes is kept here until `release`. For who is about to be
  told what there is, and must hear of changes behind that.
- A connection may be pending: it has the channel, and gets nothing until `go_live`. For who reads history first.
- Every joining has a number, so that a pass that was lined up before somebody joined can leave it out.
"""

from collections.abc import Callable

from gateway.codec import Json, Template
from gateway.connection import Connection
from gateway.errors import AlreadySubscribed, NotSubscribed
from gateway.frames import Dialect
from gateway.publication import Position

__all__ = ["Channel", "Group", "Groups", "Hub"]

Group = dict[Connection, int]  # and the number of its joining
Groups = dict[Dialect, Group]


class Channel:
    """One channel with local subscribers. key: SERVICE:NAME. template: what its publications look like to clients.

    groups: who gets them plain; positioned: who gets them with positions, and `gap` where there is one.
    """

    __slots__ = ("gap", "groups", "held", "key", "pending", "positioned", "size", "template")

    def __init__(self, key: str, template: Template) -> None:
        self.key = key
        self.template = template
        self.groups: Groups = {}
        self.positioned: Groups = {}
        self.pending: Group = {}
        self.held: dict[Connection, list[bytes]] | None = None  # there while somebody is held
        self.gap: Callable[[Position], Json] | None = None  # there once somebody asked to recover
        self.size = 0

    @property
    def is_congested(self) -> bool:
        """True if a quarter of what may wait for one of its connections waits already."""
        every = (*self.groups.values(), *self.positioned.values())
        return any(each.pending_bytes > each.outbox_max_bytes // 4 for group in every for each in group)


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

    def release(self, connection: Connection, key: str) -> list[bytes]:
        """Hold a connection no more; returns what came for it meanwhile, in order."""
        channel = self._channels.get(key)
        if channel is None or channel.held is None:
            return []
        held = channel.held.pop(connection, [])
        channel.held = channel.held or None
        return held

    def remove_all(self, connection: Connection) -> list[str]:
        """Unsubscribe a connection from everything; returns the keys of channels that it was the last of."""
        return [key for key in tuple(connection.channels) if self.remove(connection, key)]
