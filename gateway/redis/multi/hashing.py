"""Spread: selects one of several independent Redis for a key, by rendezvous hashing, so no coordination is needed.

    weight of a server for a key = blake2b-64 of "IDENTITY KEY", as a big-endian number; the highest weight has the key

KEY is the channel key, SERVICE:NAME, without prefix and braces; for unique names the key of their kind; for a token
"token TOKEN". IDENTITY is the server's URL as `RedisTarget.identity` returns it; it must be the same for all nodes and
publishers. Adding or removing a server moves only that server's share of the keys.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from snorky.gateway.config.parsers import split_redis_urls
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.target import target_from_url

__all__ = ["Spread", "targets_of"]

_T = TypeVar("_T")
_U = TypeVar("_U")


class Spread(Generic[_T]):
    """One object per server, selected by key. members: by the servers' identities."""

    def __init__(self, members: Mapping[str, _T]) -> None:
        self._members = dict(members)

    def __iter__(self) -> Iterator[_T]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    @property
    def first(self) -> _T:
        """The first object; the only one, if there is one server."""
        return next(iter(self._members.values()))

    def at(self, identity: str) -> _T:
        """Return the object of a server."""
        return self._members[identity]

    def of(self, key: str) -> _T:
        """Return the object of the server that has a key."""
        return self._members[max(self._members, key=lambda identity: (_weight(identity, key), identity))]

    def items(self) -> Iterator[tuple[str, _T]]:
        """Iterate over (server identity, object)."""
        return iter(self._members.items())

    def map(self, make: Callable[[str, _T], _U]) -> "Spread[_U]":
        """Make a Spread of new objects, each by make(server identity, object)."""
        return Spread({identity: make(identity, each) for identity, each in self._members.items()})


def targets_of(redis_url: str) -> Spread[RedisTarget]:
    """Parse the setting: one URL or several. Raises ConfigurationError: an invalid URL, or a server named twice."""
    found: dict[str, RedisTarget] = {}
    for url in split_redis_urls(redis_url):
        target = target_from_url(url)
        if target.identity in found:
            raise ConfigurationError(f"redis_url names {target.identity} twice")
        found[target.identity] = target
    if len(found) > 1 and any(target.is_cluster for target in found.values()):
        raise ConfigurationError("redis_url: a Cluster is none of several independent Redis: name it alone")
    return Spread(found)


def _weight(identity: str, key: str) -> int:
    # surrogatepass: must not raise here; lone surrogates in channel names are rejected earlier
    data = f"{identity} {key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
