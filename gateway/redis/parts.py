"""RedisParts: makes the parts of one node that use one Redis. One class for a server, one for a Cluster."""

from abc import ABC, abstractmethod

from snorky.gateway.config.limits import PAYLOAD_MAX_BYTES
from snorky.gateway.contracts.control import KEEP_S, ORDERS_MAX
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.cluster.appender import ClusterAppender
from snorky.gateway.redis.cluster.broker import ClusterBroker
from snorky.gateway.redis.cluster.commands import ClusterCommands
from snorky.gateway.redis.cluster.shard_map import ShardMap
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.commands import CommandPipeline, Commands
from snorky.gateway.redis.connection.timeouts import DEFAULT_TIMEOUTS, RedisTimeouts
from snorky.gateway.redis.control import ANSWER_S, WAIT_S, RedisControlLog
from snorky.gateway.redis.directory.directory import RedisDirectory
from snorky.gateway.redis.directory.lease import Timings
from snorky.gateway.redis.history.appender import Appender, HistoryAppender
from snorky.gateway.redis.history.store import PAGE, RedisHistory
from snorky.gateway.redis.pubsub.broker import NodeBroker, RedisBroker
from snorky.gateway.redis.revocations import INTERVAL_S, RedisRevocations

__all__ = ["ClusterParts", "RedisParts", "ServerParts"]


class RedisParts(ABC):
    """Makes parts that are not started. prefix: of all names in Redis. node_id: unique per node."""

    def __init__(
        self, *, prefix: str, node_id: str, metrics: Metrics, timeouts: RedisTimeouts = DEFAULT_TIMEOUTS
    ) -> None:
        self._prefix = prefix
        self._node_id = node_id
        self._metrics = metrics
        self._timeouts = timeouts

    @abstractmethod
    def broker(self) -> NodeBroker:
        """Make a message broker."""

    @abstractmethod
    def appender(self) -> Appender:
        """Make an appender of histories."""

    @abstractmethod
    def commands(self, role: str, timeout_s: float) -> Commands:
        """Make connections for commands. role: for metrics and logs. timeout_s: from `send` to the last answer."""

    def history(self, *, page: int = PAGE, payload_max_bytes: int = PAYLOAD_MAX_BYTES) -> RedisHistory:
        """Make a history store. page: entries per read."""
        return RedisHistory(
            self.appender(),
            self.commands("history", self._timeouts.read_timeout_s),
            prefix=self._prefix,
            metrics=self._metrics,
            page=page,
            payload_max_bytes=payload_max_bytes,
        )

    def directory(
        self, broker: NodeBroker, *, timings: Timings | None = None, tag: str = "", roster_max_bytes: int = 0
    ) -> RedisDirectory:
        """Make a directory. broker: this node's on this Redis. tag, roster_max_bytes: see RedisDirectory."""
        timings, timeout_s = timings or Timings(), self._timeouts.directory_timeout_s
        return RedisDirectory(
            self.commands("directory", timeout_s),
            self.commands("lease", min(timeout_s, timings.renew_s)),
            prefix=self._prefix,
            node_id=self._node_id,
            broker=broker,
            metrics=self._metrics,
            timings=timings,
            tag=tag,
            roster_max_bytes=roster_max_bytes,
            timeout_s=timeout_s,
        )

    def revocations(self, *, keep_s: float, interval_s: float = INTERVAL_S) -> RedisRevocations:
        """Make the list of revocations. keep_s, interval_s: see RedisRevocations."""
        commands = self.commands("revocations", self._timeouts.read_timeout_s)
        return RedisRevocations(commands, prefix=self._prefix, keep_s=keep_s, interval_s=interval_s)

    def control_log(self, *, keep_s: float = KEEP_S, orders_max: int = ORDERS_MAX) -> RedisControlLog:
        """Make the list of control orders. keep_s, orders_max: see RedisControlLog."""
        commands = self.commands("control", self._timeouts.read_timeout_s)
        waiting = self.commands("control", WAIT_S + ANSWER_S)
        return RedisControlLog(
            commands, waiting, prefix=self._prefix, node_id=self._node_id, keep_s=keep_s, orders_max=orders_max
        )

    def limit_commands(self) -> Commands:
        """Make the connections of a RedisLimitStore."""
        return self.commands("limits", self._timeouts.read_timeout_s)

    def _client_name(self, role: str) -> str:
        return f"snorky:{self._node_id}:{role}".replace(" ", "_")


class ServerParts(RedisParts):
    """Makes parts that use one server; behind Sentinel, the current primary."""

    def __init__(
        self,
        target: RedisTarget,
        *,
        prefix: str,
        node_id: str,
        metrics: Metrics,
        timeouts: RedisTimeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        super().__init__(prefix=prefix, node_id=node_id, metrics=metrics, timeouts=timeouts)
        self._target = target

    def broker(self) -> RedisBroker:
        return RedisBroker(
            self._target, prefix=self._prefix, node_id=self._node_id, metrics=self._metrics, timeouts=self._timeouts
        )

    def appender(self) -> HistoryAppender:
        return HistoryAppender(
            self._target,
            prefix=self._prefix,
            client_name=self._client_name("sequencer"),
            metrics=self._metrics,
            timeouts=self._timeouts,
        )

    def commands(self, role: str, timeout_s: float) -> CommandPipeline:
        return CommandPipeline(
            self._target,
            role=role,
            client_name=self._client_name(role),
            metrics=self._metrics,
            timeout_s=timeout_s,
            dial_timeout_s=self._timeouts.dial_timeout_s,
        )


class ClusterParts(RedisParts):
    """Makes parts that use all servers of a Cluster."""

    def __init__(
        self,
        cluster: ShardMap,
        *,
        prefix: str,
        node_id: str,
        metrics: Metrics,
        timeouts: RedisTimeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        super().__init__(prefix=prefix, node_id=node_id, metrics=metrics, timeouts=timeouts)
        self._cluster = cluster

    def broker(self) -> ClusterBroker:
        return ClusterBroker(
            self._cluster, prefix=self._prefix, node_id=self._node_id, metrics=self._metrics, timeouts=self._timeouts
        )

    def appender(self) -> ClusterAppender:
        return ClusterAppender(
            self._cluster,
            prefix=self._prefix,
            client_name=self._client_name("sequencer"),
            metrics=self._metrics,
            timeouts=self._timeouts,
        )

    def commands(self, role: str, timeout_s: float) -> ClusterCommands:
        return ClusterCommands(
            self._cluster,
            role=role,
            client_name=self._client_name(role),
            metrics=self._metrics,
            timeout_s=timeout_s,
            dial_timeout_s=self._timeouts.dial_timeout_s,
        )
