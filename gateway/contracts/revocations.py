"""Revocations: which identities and tokens are revoked. One list for the cluster.

Rules:
- The list is authoritative: each login is checked against it. Every node with clients also reads new entries once a
  second and closes the sessions that they revoke. A node that was disconnected, or had no clients, continues after the
  last entry it has read, so it misses none and needs no repair.
- A session is registered before the list is checked (`Sessions.enter`), so that a concurrent revocation is
  noticed either by the check or by the node's reading.
- A revocation is kept for as long as a token can be valid; it applies to tokens issued before it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

__all__ = ["Kind", "LocalRevocations", "Revocation", "Revocations", "Watcher"]


class Kind(StrEnum):
    """The kind of revocation. The values are stored in Redis."""

    IDENTITY = "i"  # revokes the identity's tokens issued so far
    TOKEN = "t"  # noqa: S105 - not a password: revokes one token, by its id
    DISCONNECT = "d"  # closes the identity's present connections
    RECONNECT = "r"  # the same, and clients may reconnect


@dataclass(frozen=True, slots=True)
class Revocation:
    """One entry of the list. name: of the identity, or the token's id. at_s: wall-clock time of the list."""

    kind: Kind
    name: str
    at_s: float


Watcher = Callable[[Revocation], None]


class Revocations(Protocol):
    """The cluster's list of revocations."""

    def read_while(self, has_clients: Callable[[], bool]) -> None:
        """Report entries later while a node has no clients, to whom they could apply."""

    def hurry(self) -> None:
        """Report soon what was added while this node had no clients: it has one now. Never waits."""

    async def begin(self, watcher: Watcher) -> None:
        """Call the watcher for every entry added from now on. Raises BrokerUnavailable.

        If it was called before: return when the watcher was called for the entries that were added while the node had
        no clients. So no entry from before a login is reported after it.
        """

    async def stop(self) -> None:
        """Stop calling the watcher. Idempotent."""

    async def add(self, kind: Kind, name: str) -> None:
        """Add an entry. Raises BrokerUnavailable: it is not known whether it was added."""

    async def find(self, identity: str, token_id: str | None) -> list[Revocation]:
        """Return the entries that match this identity or token. Raises BrokerUnavailable."""

    async def now_s(self) -> float:
        """Return the time by the clock that dates entries: every entry added after this call is at least as late.

        Raises BrokerUnavailable.
        """


class LocalRevocations:
    """The list of one process, for a node without Redis."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._watcher: Watcher | None = None
        self._entries: dict[tuple[Kind, str], Revocation] = {}

    def read_while(self, has_clients: Callable[[], bool]) -> None:
        """See Revocations."""

    def hurry(self) -> None:
        """See Revocations."""

    async def begin(self, watcher: Watcher) -> None:
        """See Revocations."""
        self._watcher = watcher

    async def stop(self) -> None:
        """See Revocations."""
        self._watcher = None

    async def add(self, kind: Kind, name: str) -> None:
        """See Revocations."""
        entry = self._entries[kind, name] = Revocation(kind, name, self._clock())
        if self._watcher is not None:
            self._watcher(entry)

    async def find(self, identity: str, token_id: str | None) -> list[Revocation]:
        """See Revocations."""
        wanted = [(Kind.IDENTITY, identity)] + ([(Kind.TOKEN, token_id)] if token_id is not None else [])
        return [self._entries[key] for key in wanted if key in self._entries]

    async def now_s(self) -> float:
        """See Revocations."""
        return self._clock()
