"""The interface to the stored server-side subscriptions: channels that the backend has subscribed an identity to.

`snorky.gateway.redis.subscriptions` implements it; one test suite checks it.

Rules:
- A node first registers a connection with its identity, and then reads what is stored for it. A backend first changes
  what is stored, and then gives an order about present connections. So a connection misses neither.
- A subscription is stored until it is removed, until it expires, or until its identity has not connected for
  UNUSED_S. `end` removes one channel from all identities.
- At most STORED_MAX subscriptions are stored for one identity. Each takes less than 1 KiB.
- If Redis loses what is stored about a channel, its subscriptions have ended: they are not restored.
"""

import asyncio
from typing import Final, Protocol

import msgspec

from snorky.gateway.errors import LimitExceeded

__all__ = ["STORED_MAX", "UNUSED_S", "LocalSubscriptionStore", "StoredSubscription", "SubscriptionStore", "too_many"]

STORED_MAX: Final = 128  # of one identity: at most 128 KiB
UNUSED_S: Final = 2_592_000.0  # 30 days
LOCAL_MAX: Final = 1_000  # identities, without Redis


class StoredSubscription(msgspec.Struct, frozen=True):
    """One channel. channel: its name. has_positions: the client asks for positions. expires_in_s: None = never."""

    service: str
    channel: str
    has_positions: bool = True
    expires_in_s: float | None = None


class SubscriptionStore(Protocol):
    """The stored subscriptions of all identities. Every method raises BrokerUnavailable."""

    async def stop(self) -> None:
        """Close the connections. Idempotent."""

    async def add(self, identity: str, subscription: StoredSubscription) -> None:
        """Store a subscription, in place of one to the same channel. Raises LimitExceeded: STORED_MAX are stored."""

    async def remove(self, identity: str, service: str, channel: str | None) -> None:
        """Remove an identity's subscription to a channel; None = to all channels of the service."""

    async def end(self, service: str, channel: str) -> None:
        """Remove the subscriptions of all identities to a channel."""

    async def find(self, identity: str) -> list[StoredSubscription]:
        """Return the subscriptions of an identity, in no order. It counts as connected now."""


def too_many() -> LimitExceeded:
    """Make the error of `add`."""
    return LimitExceeded("server_subscriptions", f"At most {STORED_MAX} subscriptions are stored for an identity")


class LocalSubscriptionStore:
    """The stored subscriptions of one process, for nodes without Redis: of LOCAL_MAX identities. Lost with it."""

    def __init__(self) -> None:
        self._stored: dict[str, dict[tuple[str, str], tuple[StoredSubscription, float]]] = {}

    async def stop(self) -> None:
        """See SubscriptionStore."""

    async def add(self, identity: str, subscription: StoredSubscription) -> None:
        """See SubscriptionStore."""
        key, found = (subscription.service, subscription.channel), self._valid(identity)
        if key not in found and len(found) >= STORED_MAX:
            raise too_many()
        if len(self._stored) >= LOCAL_MAX:
            for each in tuple(self._stored):
                self._valid(each)  # expired ones do not count
        if identity not in self._stored and len(self._stored) >= LOCAL_MAX:
            raise LimitExceeded("server_subscriptions", f"At most {LOCAL_MAX} identities have stored subscriptions")
        within_s = subscription.expires_in_s
        until_s = float("inf") if within_s is None else asyncio.get_running_loop().time() + within_s
        self._stored.setdefault(identity, {})[key] = subscription, until_s

    async def remove(self, identity: str, service: str, channel: str | None) -> None:
        """See SubscriptionStore."""
        for key in self._valid(identity):
            if key[0] == service and channel in (None, key[1]):
                self._remove(identity, key)

    async def end(self, service: str, channel: str) -> None:
        """See SubscriptionStore."""
        for identity in tuple(self._stored):
            await self.remove(identity, service, channel)

    async def find(self, identity: str) -> list[StoredSubscription]:
        """See SubscriptionStore."""
        now_s = asyncio.get_running_loop().time()
        return [
            msgspec.structs.replace(each, expires_in_s=None if each.expires_in_s is None else until_s - now_s)
            for each, until_s in self._valid(identity).values()
        ]

    def _valid(self, identity: str) -> dict[tuple[str, str], tuple[StoredSubscription, float]]:
        """Remove an identity's expired subscriptions; return a copy of the others."""
        now_s, found = asyncio.get_running_loop().time(), dict(self._stored.get(identity, {}))
        for key, (_, until_s) in tuple(found.items()):
            if until_s <= now_s:
                self._remove(identity, key)
                del found[key]
        return found

    def _remove(self, identity: str, key: tuple[str, str]) -> None:
        stored = self._stored[identity]
        del stored[key]
        if not stored:
            del self._stored[identity]
