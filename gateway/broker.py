"""What a node needs of a message broker. `gateway.redis.broker` fulfils it; one contract suite proves it.

Rules:
- A channel is known by its *key*, `SERVICE:NAME` as `codec.channel_key` makes it. How the broker spells
  it on its own wire is the broker's business.
- Everything a node publishes comes back to it through the broker like to every other node: one path.
- `Listener` methods are called on the event loop, from the reader, and must not block.
- Once `subscribe` has returned, everything that the broker accepts for the channel afterwards is
  delivered, in the broker's order, until `unsubscribe` - or the listener hears `on_interrupted`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

__all__ = ["Broker", "Listener"]


class Listener(Protocol):
    """Who hears what the broker brings: the node."""

    def on_publications(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        """Take what one read from the broker brought: per channel key, payloads in order (raw bytes, unchecked)."""

    def on_interrupted(self) -> None:
        """Know that publications may have been missed: the connection was lost and is whole again."""


class Broker(Protocol):
    """Publish to channels, hear the channels one subscribed to. All methods belong to one event loop."""

    @property
    def is_deaf(self) -> bool:
        """True unless a canary came through the real publish-receive path in time (RELIABILITY: deafness)."""

    async def start(self, listener: Listener) -> None:
        """Begin to connect, and go on for ever; returns at once. `is_deaf` tells when it has come through."""

    async def stop(self) -> None:
        """End all connections and tasks. Idempotent."""

    def publish(self, key: str, payload: bytes) -> asyncio.Future[int]:
        """Queue one publication; what is queued in one loop tick goes out as one pipeline, in order.

        The future: number of subscribed nodes (standalone Redis), or BrokerUnavailable within
        `publish_timeout_s`. The future may be ignored; its error then goes nowhere.
        """

    def is_subscribed(self, key: str) -> bool:
        """True while the subscription is confirmed on the present connection."""

    async def subscribe(self, key: str) -> None:
        """Return when the broker has confirmed. Idempotent; concurrent calls share one confirmation.

        Raises BrokerUnavailable: not confirmed within `confirm_timeout_s`; the wish is withdrawn
        if nobody else waits for it.
        """

    def unsubscribe(self, key: str) -> None:
        """Give the channel up; takes effect after a linger, during which `subscribe` costs nothing."""

    def pause(self) -> None:
        """Stop reading: the node has more to deliver than it can. Not counted as deafness."""

    def resume(self) -> None:
        """Read again."""
