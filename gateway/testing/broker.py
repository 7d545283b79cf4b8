"""Brokers within one process: one node's own, and one that several nodes share. Scriptable, no network."""

import asyncio

from snorky.gateway.contracts.broker import Listener
from snorky.gateway.errors import BrokerUnavailable

__all__ = ["Bus", "BusBroker", "LoopbackBroker"]


class LoopbackBroker:
    """Delivers publications to subscribed listeners in the next loop iteration.

    hold: confirmations wait until `release`. fail: the next subscribe and publish fail.
    """

    def __init__(self) -> None:
        self._listener: Listener | None = None
        self.subscribed: set[str] = set()
        self.published: list[tuple[str, bytes]] = []
        self.unsubscribed: list[str] = []
        self.is_redis_unverified = False
        self.is_paused = False
        self.pauses = 0
        self.is_failing = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self, listener: Listener) -> None:
        self._listener = listener

    async def stop(self) -> None:
        self._listener = None

    def publish(self, key: str, payload: bytes) -> asyncio.Future[int]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        if self.is_failing:
            future.set_exception(BrokerUnavailable(key))
            future.exception()
            return future
        self.published.append((key, payload))
        loop.call_soon(self._bring, key, payload)
        future.set_result(1)
        return future

    def bring(self, *publications: tuple[str, bytes]) -> None:
        """Deliver like one read from the broker, subscribed or not."""
        batch: dict[str, list[bytes]] = {}
        for key, payload in publications:
            batch.setdefault(key, []).append(payload)
        if self._listener is not None:
            self._listener.on_publications(batch)

    def _bring(self, key: str, payload: bytes) -> None:
        if key in self.subscribed and self._listener is not None:
            self._listener.on_publications({key: [payload]})

    def is_subscribed(self, key: str) -> bool:
        return key in self.subscribed

    async def subscribe(self, key: str) -> None:
        await self.gate.wait()
        if self.is_failing:
            raise BrokerUnavailable(key)
        self.subscribed.add(key)

    def unsubscribe(self, key: str) -> None:
        self.unsubscribed.append(key)
        self.subscribed.discard(key)

    def pause(self) -> None:
        self.is_paused = True
        self.pauses += 1

    def resume(self) -> None:
        self.is_paused = False

    def read_now(self) -> None:
        """Do nothing: the loop calls `_bring` for each publication."""


class Bus:
    """Delivers publications of any node to all brokers, in one order."""

    def __init__(self) -> None:
        self.brokers: list[BusBroker] = []
        self.published: list[tuple[str, bytes]] = []

    def publish(self, key: str, payload: bytes) -> None:
        """Deliver in the next loop iteration to those subscribed then."""
        self.published.append((key, payload))
        for broker in self.brokers:
            asyncio.get_running_loop().call_soon(broker.receive, key, payload)


class BusBroker(LoopbackBroker):
    """A node's end of a bus. is_lossy: publications are dropped; between `hold` and `let_go` they wait."""

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self.is_lossy = False
        self._waiting: list[tuple[str, bytes]] | None = None
        self._bus = bus
        bus.brokers.append(self)

    def publish(self, key: str, payload: bytes) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.is_failing:
            future.set_exception(BrokerUnavailable(key))
            future.exception()
        else:
            self._bus.publish(key, payload)
            future.set_result(1)
        return future

    def receive(self, key: str, payload: bytes) -> None:
        """Receive from the bus."""
        if self._waiting is not None:
            self._waiting.append((key, payload))
        elif not self.is_lossy:
            self._bring(key, payload)

    def hold(self) -> None:
        """Deliver nothing for now."""
        self._waiting = []

    def let_go(self) -> None:
        """Deliver what was held, in order."""
        waiting, self._waiting = self._waiting or [], None
        for key, payload in waiting:
            self._bring(key, payload)
