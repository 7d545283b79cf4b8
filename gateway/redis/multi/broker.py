"""SpreadBroker: a node's message broker on several independent Redis, each of which has a share of the channels."""

import asyncio

from snorky.gateway.contracts.broker import Listener
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.multi.hashing import Spread
from snorky.gateway.redis.pubsub.broker import NodeBroker

__all__ = ["SpreadBroker"]


class SpreadBroker:
    """Implements `snorky.gateway.contracts.broker.Broker`. brokers: one for each Redis, of the same node.

    If a Redis is unavailable only its own channels are affected, but Redis is unverified while it is for any broker.
    """

    def __init__(self, brokers: Spread[NodeBroker], *, metrics: Metrics) -> None:
        self._brokers = brokers
        metrics.delivery_unverified.set_function(
            lambda: float(self.is_redis_unverified)
        )  # otherwise each broker would overwrite the value

    @property
    def is_redis_unverified(self) -> bool:
        return any(broker.is_redis_unverified for broker in self._brokers)

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

    def read_now(self) -> None:
        for broker in self._brokers:
            broker.read_now()
