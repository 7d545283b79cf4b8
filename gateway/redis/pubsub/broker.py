"""RedisBroker: a node's message broker on one Redis. Combines subscriber, publisher and canary.

It uses two connections: Redis accepts almost no other command on a connection that subscribes, and a canary published
on one connection must come back on the other before the node counts as receiving.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog

from snorky.gateway.contracts.broker import Broker, Listener
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.publication import MARK
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.timeouts import DEFAULT_TIMEOUTS, RedisTimeouts
from snorky.gateway.redis.keys import canary_name, channel_name, node_channel_name
from snorky.gateway.redis.pubsub.canary import TICK_S, Canary
from snorky.gateway.redis.pubsub.names import PubSubNames
from snorky.gateway.redis.pubsub.publisher import Publisher
from snorky.gateway.redis.pubsub.sharding import Sharding
from snorky.gateway.redis.pubsub.subscriber import Subscriber

__all__ = ["NodeBroker", "RedisBroker"]

_log = structlog.get_logger("snorky.redis")


class NodeBroker(Broker, Protocol):
    """A broker on one Redis, to which the node itself can also subscribe."""

    async def subscribe_node(
        self, key: str, on_payloads: Callable[[Sequence[bytes]], None], on_interrupted: Callable[[], None]
    ) -> None:
        """Subscribe for the node itself: publications of this key go to `on_payloads`, not to the listener.

        Both callbacks are called like the methods of `Listener`. Raises BrokerUnavailable: not confirmed in time.
        """

    def unsubscribe_node(self, key: str) -> None:
        """Undo `subscribe_node`; does nothing if the key is not subscribed by it."""


class RedisBroker:
    """Implements `snorky.gateway.contracts.broker.Broker` (its docstrings are the contract).

    prefix: of all names in Redis; two deployments on one Redis need different prefixes. node_id: unique per node.
    sharding: for a shard of a Cluster.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        prefix: str,
        node_id: str,
        metrics: Metrics,
        timeouts: RedisTimeouts = DEFAULT_TIMEOUTS,
        sharding: Sharding | None = None,
    ) -> None:
        self._prefix = prefix
        self._deadline_s = timeouts.deadline_s
        self._metrics = metrics
        self._listener: Listener | None = None
        self._node_callbacks: dict[str, tuple[Callable[[Sequence[bytes]], None], Callable[[], None]]] = {}  # by key
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False
        client_name = f"snorky:{node_id}".replace(" ", "_")
        self._subscriber = Subscriber(
            target,
            client_name=f"{client_name}:subscriber",
            names=PubSubNames(prefix),
            canary_name=canary_name(prefix, node_id),
            on_batch=self._on_batch,
            on_canary=self._on_canary,
            on_whole=self._on_whole,
            on_lost=self._on_lost,
            metrics=metrics,
            timeouts=timeouts,
            sharding=sharding,
        )
        self._publisher = Publisher(
            target,
            client_name=f"{client_name}:publisher",
            metrics=metrics,
            timeouts=timeouts,
            is_sharded=sharding is not None,
        )
        self._canary = Canary(
            publish=self._publish_canary,
            redial=self._redial,
            metrics=metrics,
            silence_s=timeouts.silence_s,
            deadline_s=timeouts.deadline_s,
        )

    @property
    def is_redis_unverified(self) -> bool:
        return self._canary.is_redis_unverified

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._publisher.start()
        self._subscriber.start()
        self._tick()

    async def stop(self) -> None:
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        await self._subscriber.stop()
        await self._publisher.stop()

    def publish(self, key: str, payload: bytes) -> "asyncio.Future[int]":
        name_of = node_channel_name if payload[:1] == MARK else channel_name
        return self._publisher.publish(name_of(self._prefix, key), payload)

    def is_subscribed(self, key: str) -> bool:
        return self._subscriber.is_subscribed(key)

    async def subscribe(self, key: str) -> None:
        await self._subscriber.subscribe(key)

    def unsubscribe(self, key: str) -> None:
        self._subscriber.unsubscribe(key)

    async def subscribe_node(
        self, key: str, on_payloads: Callable[[Sequence[bytes]], None], on_interrupted: Callable[[], None]
    ) -> None:
        """See NodeBroker.subscribe_node."""
        self._node_callbacks[key] = on_payloads, on_interrupted
        await self._subscriber.subscribe(key)

    def unsubscribe_node(self, key: str) -> None:
        """See NodeBroker.unsubscribe_node."""
        if self._node_callbacks.pop(key, None) is not None:
            self._subscriber.unsubscribe(key)

    def pause(self) -> None:
        self._canary.pause()
        self._subscriber.pause()

    def resume(self) -> None:
        self._subscriber.resume()
        self._canary.resume()

    def read_now(self) -> None:
        self._subscriber.read_now()

    def _tick(self) -> None:
        if not self._is_stopped:
            self._canary.tick()
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _publish_canary(self, payload: bytes) -> "asyncio.Future[int]":
        return self._publisher.publish(self._subscriber.canary_name, payload)

    def _redial(self, reason: str) -> None:
        self._publisher.redial_if_owing(self._deadline_s, reason)
        self._subscriber.redial(reason)

    # -- callbacks of the subscriber ---------------------------------------------------------------------------

    def _on_batch(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        self._canary.on_heard()
        try:
            for key in self._node_callbacks.keys() & batch.keys():
                self._node_callbacks[key][0](batch[key])
                batch = {other: payloads for other, payloads in batch.items() if other != key}
            if self._listener is not None and batch:
                self._listener.on_publications(batch)
        except Exception as error:  # the top of a callback: one bad publication must not end the connection
            self._metrics.drops.labels("internal").inc(sum(map(len, batch.values())))
            _log.exception("publications not processed", error=repr(error))

    def _on_canary(self, payloads: Sequence[bytes]) -> None:
        self._canary.on_canaries(payloads)

    def _on_whole(self, was_interrupted: bool) -> None:
        self._canary.on_whole()
        if was_interrupted and self._listener is not None:
            try:
                for _, on_interrupted in self._node_callbacks.values():
                    on_interrupted()
                self._listener.on_interrupted()
            except Exception as error:  # as above
                _log.exception("interruption not processed", error=repr(error))

    def _on_lost(self) -> None:
        self._canary.on_lost("stopped" if self._is_stopped else "connection lost")
