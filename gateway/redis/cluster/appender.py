"""ClusterAppender: publishes with positions in a Redis Cluster, through one HistoryAppender for each shard.

After a failover the shard's HistoryAppender sends unanswered publications again. When a slot moves, `slot_queue` keeps
the order.
"""

import asyncio
from functools import partial
from typing import Any

from snorky.gateway.contracts.history import History
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.publication import Position
from snorky.gateway.redis.cluster.shard_map import Shard, ShardMap
from snorky.gateway.redis.cluster.slot_queue import SlotQueues
from snorky.gateway.redis.connection.pipeline import fail
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from snorky.gateway.redis.history.appender import HistoryAppender
from snorky.gateway.redis.keys import channel_name

__all__ = ["ClusterAppender"]


class ClusterAppender:
    """Implements `Appender` for a Cluster. client_name: of each connection."""

    def __init__(
        self, cluster: ShardMap, *, prefix: str, client_name: str, metrics: Metrics, timeouts: RedisTimeouts
    ) -> None:
        self._cluster = cluster
        self._prefix = prefix
        self._make = partial(
            HistoryAppender, prefix=prefix, client_name=client_name, metrics=metrics, timeouts=timeouts, is_sharded=True
        )
        self._appenders: dict[Shard, HistoryAppender] = {}
        self._slot_queues = SlotQueues(cluster.refresh_now, timeout_s=timeouts.publish_timeout_s, metrics=metrics)
        self._stopping: set[asyncio.Task[None]] = set()
        self._is_stopped = False

    def start(self) -> None:
        """Start to connect. Call once, on the event loop of all other calls."""
        self._cluster.start(self._on_change)
        self._on_change()

    async def stop(self) -> None:
        """Close all connections; pending publications fail. Idempotent."""
        self._is_stopped = True
        await self._cluster.stop(self._on_change)
        await asyncio.gather(*(each.stop() for each in self._appenders.values()), *self._stopping)

    def append(
        self, key: str, payload: bytes, history: History, once: str | None, rest: bytes = b""
    ) -> "asyncio.Future[Position]":
        """See Appender.append."""
        name = channel_name(self._prefix, key)

        def send() -> "asyncio.Future[Any] | None":
            appender = self._of(name)
            return None if appender is None else appender.append(key, payload, history, once, rest)

        return self._send(name, send)

    def publish_once(self, key: str, payload: bytes, once: str) -> "asyncio.Future[None]":
        """See Appender.publish_once."""
        name = channel_name(self._prefix, key)

        def send() -> "asyncio.Future[Any] | None":
            appender = self._of(name)
            return None if appender is None else appender.publish_once(key, payload, once)

        return self._send(name, send)

    @property
    def runs(self) -> bytes:
        """The runs of all primaries, separated by blanks: a slot may move before this node learns of it."""
        return self._runs_beside(None)

    def _runs_beside(self, shard: Shard | None) -> bytes:
        """List the runs of all other shards. Not of `shard`: after a failover its new primary may lack some data."""
        return b" ".join(each.run for other, each in self._appenders.items() if other is not shard and each.run)

    def _spell_runs(self) -> None:
        for appender in self._appenders.values():
            appender.spell_runs()

    def _send(self, name: bytes, send: Any) -> "asyncio.Future[Any]":
        if self._is_stopped:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            fail(future, BrokerUnavailable("the broker is stopped"))
            return future
        return self._slot_queues.send(name, self._cluster.shard_of(name), send)

    def _of(self, name: bytes) -> HistoryAppender | None:
        shard = self._cluster.shard_of(name)
        return None if shard is None else self._appenders.get(shard)

    def _on_change(self) -> None:
        for shard in self._cluster.shards:
            if shard not in self._appenders:
                appender = self._appenders[shard] = self._make(shard.target)
                appender.find_other_runs = partial(self._runs_beside, shard)
                appender.on_run = self._spell_runs
                appender.start()
        for shard in [each for each in self._appenders if each not in self._cluster.shards]:
            end = asyncio.get_running_loop().create_task(self._appenders.pop(shard).stop())
            self._stopping.add(end)
            end.add_done_callback(self._stopping.discard)
