"""Brokers under test: a connected one, and a listener that records its calls."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from snorky.gateway.contracts.broker import Broker
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.backend import parts_of
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from snorky.gateway.redis.multi.broker import SpreadBroker
from snorky.gateway.redis.multi.hashing import Spread, targets_of
from snorky.gateway.redis.pubsub.broker import NodeBroker

__all__ = ["PREFIX", "Recorder", "broker_of", "brokers_of", "hears", "open_broker"]

PREFIX = "test"
TEST_TIMEOUT_S = 90.0  # a test that waits for something that never comes must fail, not hang


class Recorder:
    """A listener that records everything; tests can wait for it."""

    def __init__(self) -> None:
        self.publications: list[tuple[str, bytes]] = []
        self.batches = 0
        self.interruptions = 0
        self._changed = asyncio.Event()

    def on_publications(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        self.batches += 1
        for key, payloads in batch.items():
            self.publications += [(key, payload) for payload in payloads]
        self._changed.set()

    def on_interrupted(self) -> None:
        self.interruptions += 1
        self._changed.set()

    def of(self, key: str) -> list[bytes]:
        """All payloads of a channel, in order."""
        return [payload for each, payload in self.publications if each == key]

    async def until(self, claim: Callable[[], object], *, within_s: float = 30.0) -> None:
        """Return when the condition is true. Raises AssertionError: not in time."""
        try:
            async with asyncio.timeout(within_s):
                while not claim():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            last = self.publications[-3:]
            raise AssertionError(f"not within {within_s} s; {len(self.publications)} came, last {last}") from None


async def hears(broker: Broker, is_hearing: bool = True, *, within_s: float = 30.0) -> float:
    """Wait until the broker receives (or does not) and return how long it took, in seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while broker.is_redis_unverified == is_hearing:
        assert loop.time() - began < within_s, (
            f"not within {within_s} s: is_redis_unverified is {broker.is_redis_unverified}"
        )
        await asyncio.sleep(0.005)  # a property cannot be awaited
    return loop.time() - began


def brokers_of(url: str, *, node_id: str, metrics: Metrics, **timings: float) -> Spread[NodeBroker]:
    """Make a node's brokers, one for each Redis that the URL names. timings: see RedisTimeouts."""
    timeouts = RedisTimeouts(**timings)
    return targets_of(url).map(
        lambda _, target: parts_of(target, prefix=PREFIX, node_id=node_id, metrics=metrics, timeouts=timeouts).broker()
    )


def broker_of(url: str, *, node_id: str, metrics: Metrics, **timings: float) -> Broker:
    """Make a node's broker. url: of one server, several, or a Cluster. timings: see RedisTimeouts."""
    brokers = brokers_of(url, node_id=node_id, metrics=metrics, **timings)
    return brokers.first if len(brokers) == 1 else SpreadBroker(brokers, metrics=metrics)


@asynccontextmanager
async def open_broker(
    url: str, *, node_id: str = "node-1", listener: Any = None, metrics: Metrics | None = None, **timings: float
) -> AsyncIterator[tuple[Broker, Recorder]]:
    """Run a broker that is connected, until the block ends."""
    recorder = Recorder() if listener is None else listener
    broker = broker_of(url, node_id=node_id, metrics=metrics or Metrics(), **timings)
    await broker.start(recorder)
    try:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await hears(broker)
            yield broker, recorder
    finally:
        await broker.stop()
