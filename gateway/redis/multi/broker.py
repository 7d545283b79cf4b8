"""SpreadBroker: a node's message broker on several independent Redis, each of which has a share of the channels."""

import asyncio

from snorky.gateway.contracts.broker import Listener
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.multi.hashing import Spread
from snorky.gateway.redis.pubsub.broker import NodeBroker

__all__ = ["SpreadBroker"]


class SpreadBroker:
    """Implements `snorky.gateway.contracts.broker.Broker`. brokers: one for each Redis, of the same node.

    If a Redis is unavailable only its own channels are affected, but the node counts as deaf while any broker is deaf.
    """

    def __init__(self, brokers: Spread[NodeBroker], *, metrics: Metrics) -> None:
        self._brokers = brokers
        metrics.delivery_unverified.set_function(
            lambda: float(self.is_deaf)
        )  # otherwise each broker would overwrite the value

    @property
    def is_deaf(self) -> bool:
        return any(broker.is_deaf for broker in self._brokers)

    async def start(self, listener: Listener) -> None:
        for broker in self._brokers:
            await broker.start(listener)

    async def stop(self) -> None:
        await asyncio.gather(*(broker.stop() for broker in self._brokers))

    def publish(self, key: str, payload: bytes) -> "asyncio.Future[int]":
        return self._brokers.of(key).publish(key, payload)

    def is_subscribed(self, key: str) -> bool:
        return self._brokers.of(key).is_subscribed(key)

    async def subscribe(self, key: str) -> None:
        await self._brokers.of(key).subscribe(key)

    def unsubscribe(self, key: str) -> None:
        self._brokers.of(key).unsubscribe(key)

    def pause(self) -> None:
        for broker in self._brokers:
            broker.pause()

    def resume(self) -> None:
        for broker in self._brokers:
            broker.resume()
