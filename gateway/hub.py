"""Hub: which local connections subscribe to which channel. Pure: no await, no input, no output.

Rules:
- A channel is here exactly while a local connection subscribes to it, or is about to.
- `connection.channels` and the hub say the same at all times; both change here and nowhere else.
- A connection may be held: it has the channel, but what comes is kept here until `release`. For who is about to be
  told what there is, and must hear of changes behind that.
- Connections stand by dialect, because a frame is made once per dialect and then written to all of a group.
"""

from gateway.codec import Template
from gateway.connection import Connection
from gateway.errors import AlreadySubscribed, NotSubscribed
from gateway.frames import Dialect

__all__ = ["Channel", "Hub"]


class Channel:
    """One channel with local subscribers. key: SERVICE:NAME. template: what its publications look like to clients."""

    __slots__ = ("groups", "held", "key", "size", "template")

    def __init__(self, key: str, template: Template) -> None:
        self.key = key
        self.template = template
        self.groups: dict[Dialect, dict[Connection, None]] = {}
        self.held: dict[Connection, list[bytes]] | None = None  # there while somebody is held
        self.size = 0


class Hub:
    """The channels of one node, by key."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}
        self.subscriptions = 0

    def __len__(self) -> int:
        return len(self._channels)

    def __contains__(self, key: str) -> bool:
        return key in self._channels

    def get(self, key: str) -> Channel | None:
        """Find a channel that has local subscribers."""
        return self._channels.get(key)

    def add(self, connection: Connection, key: str, template: Template, *, is_held: bool = False) -> None:
        """Subscribe a connection; the template counts for the first one only. Raises AlreadySubscribed."""
        channels = connection.channels
        if key in channels:
            raise AlreadySubscribed
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(key, template)
        channel.groups.setdefault(connection.dialect, {})[connection] = None
        channel.size += 1
        self.subscriptions += 1
        if is_held:
            channel.held = channel.held or {}
            channel.held[connection] = []
        if isinstance(channels, set):
            channels.add(key)
        else:
            connection.channels = {key}

    def remove(self, connection: Connection, key: str) -> bool:
        """Unsubscribe a connection; True if it was the channel's last. Raises NotSubscribed."""
        if key not in connection.channels:
            raise NotSubscribed
        channel = self._channels[key]
        if channel.held is not None:
            self.release(connection, key)
        group = channel.groups[connection.dialect]
        del group[connection]
        if not group:
            del channel.groups[connection.dialect]
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
