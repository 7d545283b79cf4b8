"""The interface between a node and its message broker.

`snorky.gateway.redis.pubsub.broker` implements it; one test suite checks it.

Rules:
- A channel is identified by its *key*, `SERVICE:NAME` as `codec.channel_key` returns it. The names that the broker
  uses internally are not visible here.
- The node receives its own publications through the broker, as every other node does: one path.
- `Listener` methods are called on the event loop, from the reader, and must not block.
- Once `subscribe` has returned, everything that the broker accepts for the channel afterwards is
  delivered, in the broker's order, until `unsubscribe` or until `on_interrupted` is called.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

__all__ = ["Broker", "Listener"]


class Listener(Protocol):
    """Receives publications from the broker. The node implements it."""

    def on_publications(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        """Handle the publications of one read from the broker: per channel key, raw unchecked payloads in order."""

    def on_interrupted(self) -> None:
        """Handle a possible loss of publications: the connection was lost and has been restored."""


class Broker(Protocol):
    """Publishes to channels and receives from subscribed channels. All methods must run on one event loop."""

    @property
    def is_redis_unverified(self) -> bool:
        """True unless a canary message came back through publish and receive in time: a reason of `/readyz`."""

    async def start(self, listener: Listener) -> None:
        """Begin to connect and reconnect until `stop`; returns at once. Redis is verified once messages arrive."""

    async def stop(self) -> None:
        """End all connections and tasks. Idempotent."""

    def publish(self, key: str, payload: bytes) -> asyncio.Future[int]:
        """Queue one publication; those queued in one loop tick are sent as one pipeline, in order.

        The future's result: the number of subscribed nodes (standalone Redis), or BrokerUnavailable within
        `publish_timeout_s`. The caller may drop the future; its error is then discarded.
        """

    def is_subscribed(self, key: str) -> bool:
        """True while the subscription is confirmed on the present connection."""

    async def subscribe(self, key: str) -> None:
        """Return when the broker has confirmed. Idempotent; concurrent calls share one confirmation.

        Raises BrokerUnavailable: not confirmed within `confirm_timeout_s`; the request is withdrawn
        unless another call waits for it.
        """

    def unsubscribe(self, key: str) -> None:
        """Unsubscribe after a delay, during which `subscribe` costs nothing."""

    def pause(self) -> None:
        """Stop reading: publications arrive faster than the node can deliver them. Does not count as a loss."""

    def resume(self) -> None:
        """Resume reading."""

    def read_now(self) -> None:
        """Call the listener with publications that have arrived and that the event loop has not read yet.

        The event loop reads them anyway: an implementation may do nothing.
        """
