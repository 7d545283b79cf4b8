"""A broker within one process, for tests of the layers above a broker. Scriptable, no network."""

import asyncio

from snorky.gateway.contracts.broker import Listener
from snorky.gateway.errors import BrokerUnavailable


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
        assert self._listener is not None
        batch: dict[str, list[bytes]] = {}
        for key, payload in publications:
            batch.setdefault(key, []).append(payload)
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
