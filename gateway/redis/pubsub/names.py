"""PubSubNames: the names in Redis of the channels that a node subscribes to, and back to their keys.

A node with a million channels stores each key once, as text, and computes the names when it needs them.
"""

from typing import Protocol

from snorky.gateway.redis.keys import DIRECT_KEY, channel_name, node_channel_name

__all__ = ["NamesOfKeys", "PubSubNames"]


class NamesOfKeys(Protocol):
    """Names of channels in Redis, by key."""

    def of(self, key: str) -> tuple[bytes, ...]:
        """Return the names of a key, one or two. Only nodes publish on the last one."""

    def read(self, name: bytes) -> tuple[str, bool] | None:
        """Return the key that has this name, and True if it is the last of its names. None: no key can have it."""


class PubSubNames:
    """The names of one deployment. prefix: of all names in Redis."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._open, self._nodes = (name(prefix, "")[:-1] for name in (channel_name, node_channel_name))
        self._open_size, self._nodes_size = len(self._open), len(self._nodes)

    def of(self, key: str) -> tuple[bytes, ...]:
        """See NamesOfKeys."""
        if key.startswith(DIRECT_KEY):  # belongs to no service, so publishers have no access to it
            return (channel_name(self._prefix, key),)
        return channel_name(self._prefix, key), node_channel_name(self._prefix, key)

    def read(self, name: bytes) -> tuple[str, bool] | None:
        """See NamesOfKeys."""
        if name[-1:] != b"}":
            return None
        try:
            if name.startswith(self._open):
                key = name[self._open_size : -1].decode()
                return key, key.startswith(DIRECT_KEY)
            if name.startswith(self._nodes):
                return name[self._nodes_size : -1].decode(), True
        except UnicodeDecodeError:  # not subscribed by a node
            pass
        return None
