"""Spread: which of several independent Redis has what; by rendezvous hashing, so all find the same without asking.

    weight of a server for a key = blake2b-64 of "IDENTITY KEY", as a big-endian number; the heaviest has the key

KEY is that of the channel, SERVICE:NAME, without prefix and braces; a name of a service lies where its names' key does,
a token where "token TOKEN" does. IDENTITY is the server's URL as `RedisTarget.identity` gives it: what all who
publish must write alike. One server more or less moves only its own share of the keys.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from gateway.errors import ConfigurationError
from gateway.redis.target import RedisTarget
from gateway.setting_values import split_redis_urls

__all__ = ["Spread", "targets_of"]

_T = TypeVar("_T")
_U = TypeVar("_U")


class Spread(Generic[_T]):
    """One thing for each server, found by key. members: by the servers' identities."""

    def __init__(self, members: Mapping[str, _T]) -> None:
        self._members = dict(members)

    def __iter__(self) -> Iterator[_T]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    @property
    def first(self) -> _T:
        """The first of them; the one, where there is one."""
        return next(iter(self._members.values()))

    def at(self, identity: str) -> _T:
        """Give the one of a server."""
        return self._members[identity]

    def of(self, key: str) -> _T:
        """Find the one that has a key."""
        return self._members[max(self._members, key=lambda identity: (_weight(identity, key), identity))]

    def items(self) -> Iterator[tuple[str, _T]]:
        """Give all, with the identities of their servers."""
        return iter(self._members.items())

    def map(self, make: Callable[[str, _T], _U]) -> "Spread[_U]":
        """Make one thing for each of these, from identity and thing."""
        return Spread({identity: make(identity, each) for identity, each in self._members.items()})


def targets_of(redis_url: str) -> Spread[RedisTarget]:
    """Read the setting: one URL or several. Raises ConfigurationError: one is none, or a server is named twice."""
    found: dict[str, RedisTarget] = {}
    for url in split_redis_urls(redis_url):
        target = RedisTarget.from_url(url)
        if target.identity in found:
            raise ConfigurationError(f"redis_url names {target.identity} twice")
        found[target.identity] = target
    if len(found) > 1 and any(target.cluster is not None for target in found.values()):
        raise ConfigurationError("redis_url: a Cluster is none of several independent Redis: name it alone")
    return Spread(found)


def _weight(identity: str, key: str) -> int:
    # what a canonical channel name cannot have (a lone surrogate) is refused long before; elsewhere it must not raise
    data = f"{identity} {key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
