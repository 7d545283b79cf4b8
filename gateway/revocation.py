"""Revocations: which identities and tokens are not good any more. One list of the cluster.

Rules:
- The list is the truth: who comes is looked up in it. It is also read by every node once in a second, from where
  the node was: what is new there ends those who are here. A node that was cut off reads on where it was, so that
  nothing is missed and nothing has to be repaired.
- Who comes is entered among the present ones before the list is asked (`Sessions.enter`), so that a revocation is
  seen one way or the other.
- A revocation is kept for as long as a token can be valid; it touches what was issued before it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

__all__ = ["Kind", "LocalRevocations", "Revocation", "Revocations", "Watcher"]


class Kind(StrEnum):
    """What was done. The values stand in Redis."""

    IDENTITY = "i"  # its tokens of until now are no good
    TOKEN = "t"  # noqa: S105 - no password: one token, by its id
    DISCONNECT = "d"  # its connections of now end
    RECONNECT = "r"  # the same, and they may come back


@dataclass(frozen=True, slots=True)
class Revocation:
    """One entry of the list. name: of the identity, or the token's id. at_s: wall clock of the list."""

    kind: Kind
    name: str
    at_s: float


Watcher = Callable[[Revocation], None]


class Revocations(Protocol):
    """The list of the cluster."""

    async def begin(self, watcher: Watcher) -> None:
        """Tell the watcher of everything that is added from now on. Idempotent. Raises BrokerUnavailable."""

    async def stop(self) -> None:
        """Tell nobody any more. Idempotent."""

    async def add(self, kind: Kind, name: str) -> None:
        """Add an entry. Raises BrokerUnavailable: it is not known whether it was."""

    async def find(self, identity: str, token_id: str | None) -> list[Revocation]:
        """Look up what is revoked of these. Raises BrokerUnavailable."""


class LocalRevocations:
    """The list of one process: for a node without a Redis."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._watcher: Watcher | None = None
        self._entries: dict[tuple[Kind, str], Revocation] = {}

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
