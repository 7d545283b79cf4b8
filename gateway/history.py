"""What channels keep, for who comes late. `gateway.redis.history` fulfils it; one contract suite proves it.

Rules:
- Publications that are kept have positions, EPOCH:OFFSET:TAG. Offsets count by one; the epoch is another whenever
  they begin anew; the tag is random per entry, so that an offset that was used twice (after the failover to a
  lagging replica) is not mistaken for the same entry.
- What is kept is also published to the channel's subscribers, in the same order, with its position.
- A position can be read from while its own entry or the one behind it is kept; else that is said, never hidden.
"""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from gateway.publication import Position, Publication

__all__ = ["History", "Keeper"]


@dataclass(frozen=True, slots=True)
class History:
    """How much a channel keeps: size entries (0 = any number), each for ttl_s seconds, at least."""

    ttl_s: float
    size: int = 0


class Keeper(Protocol):
    """Publishes to channels that keep a history, and reads it. Keys are made by `codec.channel_key`."""

    async def start(self) -> None:
        """Begin to connect; returns at once."""

    async def stop(self) -> None:
        """End all connections; what is pending fails. Idempotent."""

    def publish(
        self, key: str, payload: bytes, history: History, *, once: str | None = None
    ) -> asyncio.Future[Position]:
        """Queue one publication, JSON; its order among this node's own is that of the calls, also over a reconnect.

        once: an idempotency key of this channel; a second publication under it is answered as the first, and not
        published. The future: BrokerUnavailable within `publish_timeout_s`; it may have been published. It may be
        ignored.
        """

    async def read(self, key: str, since: Position) -> list[Publication] | None:
        """Read all that was published behind a position, in order; None = it can no longer be had, or never could.

        Payloads are not checked. Raises BrokerUnavailable.
        """

    async def position(self, key: str) -> Position:
        """Tell where a channel stands; its history begins here if it has none. Raises BrokerUnavailable."""
