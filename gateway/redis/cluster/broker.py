"""ClusterBroker: a node's message broker on a Redis Cluster, by sharded pub/sub, with two connections per shard.

Rules:
- Each shard has a RedisBroker, with a canary in one of the shard's slots. A RedisBroker handles a failover within its
  shard; this module handles slots that move from one shard to another.
- A subscribed channel that moved is subscribed to on its new shard first, and then unsubscribed on the former one.
  After all moved channels are subscribed again, the listener's `on_interrupted` is called.
- Redis is unverified while it is for any shard's broker, a channel is being moved, or a slot has no server.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from snorky.gateway.contracts.broker import Listener
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.cluster.shard_map import Shard, ShardMap
from snorky.gateway.redis.cluster.slot_queue import SlotQueues
from snorky.gateway.redis.cluster.slots import SLOTS, slot_of
from snorky.gateway.redis.connection.pipeline import fail
from snorky.gateway.redis.connection.timeouts import DEFAULT_TIMEOUTS, RedisTimeouts
from snorky.gateway.redis.keys import channel_name, sharded_canary_name
from snorky.gateway.redis.pubsub.broker import RedisBroker
from snorky.gateway.redis.pubsub.sharding import ChannelMoved, Sharding

__all__ = ["ClusterBroker"]

AGAIN_S: Final = 0.05  # between two attempts to subscribe to a moved channel

_log = structlog.get_logger("snorky.redis")


class ClusterBroker:
    """Implements `NodeBroker` for a Cluster."""

    def __init__(
        self,
        cluster: ShardMap,
        *,
        prefix: str,
        node_id: str,
        metrics: Metrics,
        timeouts: RedisTimeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        self._cluster = cluster
        self._prefix = prefix
        self._node_id = node_id
        self._metrics = metrics
        self._timeouts = timeouts
        self._brokers: dict[Shard, RedisBroker] = {}
        self._brokers_by_key: dict[str, RedisBroker] = {}  # subscribed keys
        self._moved_keys: set[str] = set()  # of these, the ones whose subscription Redis ended because the slot moved
        self._node_callbacks: dict[str, tuple[Callable[[Sequence[bytes]], None], Callable[[], None]]] = {}
        self._slot_queues = SlotQueues(cluster.refresh_now, timeout_s=timeouts.publish_timeout_s, metrics=metrics)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self._is_moving = False
        self._is_covered = False
        self._is_paused = False
        self._is_stopped = False
        metrics.delivery_unverified.set_function(
            lambda: float(self.is_redis_unverified)
        )  # otherwise each shard would overwrite the value

    @property
    def is_redis_unverified(self) -> bool:
        return (
            not self._is_covered
            or self._is_moving
            or bool(self._moved_keys)
            or any(broker.is_redis_unverified for broker in self._brokers.values())
        )

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._cluster.start(self._changed.set)
        self._changed.set()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-cluster-broker")

    async def stop(self) -> None:
        self._is_stopped = True
        await self._cluster.stop(self._changed.set)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(*(broker.stop() for broker in self._brokers.values()))

    def publish(self, key: str, payload: bytes) -> "asyncio.Future[int]":
        name = channel_name(self._prefix, key)

        def send() -> "asyncio.Future[int] | None":
            broker = self._of(name)
            return None if broker is None else broker.publish(key, payload)

        if self._is_stopped:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            fail(future, BrokerUnavailable("the broker is stopped"))
            return future
        return self._slot_queues.send(name, self._cluster.shard_of(name), send)

    def is_subscribed(self, key: str) -> bool:
        broker = self._brokers_by_key.get(key)
        return broker is not None and broker.is_subscribed(key)

    async def subscribe(self, key: str) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeouts.confirm_timeout_s
        name = channel_name(self._prefix, key)
        while True:
            broker = self._of(name)
            if broker is not None:
                try:
                    await broker.subscribe(key)
                except ChannelMoved:
                    if loop.time() >= deadline:
                        raise
                    self._cluster.refresh_now()
                else:
                    if self._of(name) is broker:
                        self._brokers_by_key[key] = broker
                        return
                    broker.unsubscribe(key)
            elif self._is_stopped or loop.time() >= deadline:
                raise BrokerUnavailable(f"no server has the slot of {key!r}")
            await asyncio.sleep(AGAIN_S)

    def unsubscribe(self, key: str) -> None:
        broker = self._brokers_by_key.pop(key, None)
        self._moved_keys.discard(key)
        if broker is not None:
            broker.unsubscribe(key)

    async def subscribe_node(
        self, key: str, on_payloads: Callable[[Sequence[bytes]], None], on_interrupted: Callable[[], None]
    ) -> None:
        """See NodeBroker.subscribe_node."""
        self._node_callbacks[key] = on_payloads, on_interrupted
        await self.subscribe(key)

    def unsubscribe_node(self, key: str) -> None:
        """See NodeBroker.unsubscribe_node."""
        if self._node_callbacks.pop(key, None) is not None:
            self.unsubscribe(key)

    def pause(self) -> None:
        self._is_paused = True
        for broker in self._brokers.values():
            broker.pause()

    def resume(self) -> None:
        self._is_paused = False
        for broker in self._brokers.values():
            broker.resume()

    def read_now(self) -> None:
        for broker in tuple(self._brokers.values()):
            broker.read_now()

    # -- Listener of the shards' brokers -------------------------------------------------------------------------

    def on_publications(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        """Pass on the publications of one shard."""
        for key in self._node_callbacks.keys() & batch.keys():
            self._node_callbacks[key][0](batch[key])
            batch = {other: payloads for other, payloads in batch.items() if other != key}
        if self._listener is not None and batch:
            self._listener.on_publications(batch)

    def on_interrupted(self) -> None:
        """Pass on that something may have been missed."""
        for _, on_interrupted in self._node_callbacks.values():
            on_interrupted()
        if self._listener is not None:
            self._listener.on_interrupted()

    # -- following slots -----------------------------------------------------------------------------------------

    def _of(self, name: bytes) -> RedisBroker | None:
        shard = self._cluster.shard_of(name)
        return None if shard is None else self._brokers.get(shard)

    def _on_moved(self, key: str) -> None:
        if key in self._brokers_by_key:
            self._moved_keys.add(key)
            self._cluster.refresh_now()
            self._changed.set()

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._follow()
            except Exception as error:  # the top of a task: it must go on
                _log.exception("moved slots not processed", error=repr(error))
                self._changed.set()
                await asyncio.sleep(AGAIN_S)

    async def _follow(self) -> None:
        shards = list(self._cluster.shards)
        for shard in shards:
            if shard not in self._brokers:
                broker = self._brokers[shard] = self._make(shard)
                await broker.start(self)
                if self._is_paused:
                    broker.pause()
        self._is_covered = sum(last + 1 - first for shard in shards for first, last in shard.slots) == SLOTS
        moving = [
            key
            for key, broker in self._brokers_by_key.items()
            if key in self._moved_keys or self._of_key(key) is not broker
        ]
        if moving:
            self._is_moving = True
            _log.info("channels follow their slots", channels=len(moving))
            arrived = await asyncio.gather(*map(self._move, moving))
            if all(arrived):
                self._is_moving = False
                self.on_interrupted()
            else:
                self._changed.set()
                await asyncio.sleep(AGAIN_S)
        for shard in [each for each in self._brokers if each not in shards]:
            await self._brokers.pop(shard).stop()

    async def _move(self, key: str) -> bool:
        """Subscribe to a channel on its present shard; False = not yet possible."""
        before, now = self._brokers_by_key.get(key), self._of_key(key)
        if before is None:
            return True  # it was unsubscribed meanwhile
        if now is None:
            return False
        try:
            await now.subscribe(key)
        except BrokerUnavailable:
            self._cluster.refresh_now()
            return False
        if key not in self._brokers_by_key:
            now.unsubscribe(key)
            return True
        self._brokers_by_key[key] = now
        self._moved_keys.discard(key)
        if before is not now:
            before.unsubscribe(key)
        return True

    def _of_key(self, key: str) -> RedisBroker | None:
        return self._of(channel_name(self._prefix, key))

    def _make(self, shard: Shard) -> RedisBroker:
        return RedisBroker(
            shard.target,
            prefix=self._prefix,
            node_id=self._node_id,
            metrics=self._metrics,
            timeouts=self._timeouts,
            sharding=Sharding(
                on_moved=self._on_moved,
                new_canary_name=lambda: sharded_canary_name(
                    self._prefix, self._node_id, lambda name: shard.has(slot_of(name))
                ),
            ),
        )
