"""RedisBackend: builds the Redis parts of a node (broker, directory, history) for one Redis, several, or a Cluster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from snorky.gateway.config.settings import PAYLOAD_MAX_BYTES
from snorky.gateway.contracts.broker import Broker
from snorky.gateway.contracts.directory import Directory
from snorky.gateway.contracts.history import HistoryStore
from snorky.gateway.contracts.revocations import Revocations
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.cluster.broker import ClusterBroker
from snorky.gateway.redis.cluster.shard_map import ShardMap, shard_map_of
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.directory.directory import RedisDirectory
from snorky.gateway.redis.directory.node_states import NodeReport
from snorky.gateway.redis.directory.versions import Versions, said
from snorky.gateway.redis.history.store import RedisHistory
from snorky.gateway.redis.multi.broker import SpreadBroker
from snorky.gateway.redis.multi.directory import SpreadDirectory, tag_of
from snorky.gateway.redis.multi.hashing import Spread, targets_of
from snorky.gateway.redis.multi.history import SpreadHistory
from snorky.gateway.redis.multi.revocations import SpreadRevocations
from snorky.gateway.redis.pubsub.broker import RedisBroker
from snorky.gateway.redis.revocations import RedisRevocations
from snorky.gateway.redis.write_watch import WriteWatch

__all__ = ["RedisBackend"]


@dataclass(frozen=True, slots=True)
class RedisBackend:
    """The Redis parts of one node, not started. Made by `of`."""

    broker: Broker
    directory: Directory
    keeper: HistoryStore
    targets: Spread[RedisTarget]
    prefix: str
    node_id: str
    reports: Sequence[NodeReport]  # one for each Redis

    @classmethod
    def of(
        cls,
        redis_url: str,
        *,
        prefix: str,
        node_id: str,
        metrics: Metrics,
        payload_max_bytes: int = PAYLOAD_MAX_BYTES,
        roster_max_bytes: int = 0,
    ) -> Self:
        """Make the parts. redis_url: as in Settings. payload_max_bytes, roster_max_bytes: see Limits.

        Raises ConfigurationError.
        """
        targets = targets_of(redis_url)
        if (cluster := shard_map_of(targets.first)) is not None:
            return cls._of_cluster(
                targets,
                cluster,
                prefix=prefix,
                node_id=node_id,
                metrics=metrics,
                payload_max_bytes=payload_max_bytes,
                roster_max_bytes=roster_max_bytes,
            )
        is_several = len(targets) > 1

        def broker_of(_: str, target: RedisTarget) -> RedisBroker:
            return RedisBroker(target, prefix=prefix, node_id=node_id, metrics=metrics)

        def directory_of(identity: str, target: RedisTarget) -> RedisDirectory:
            tag = tag_of(identity) if is_several else ""
            broker = brokers.at(identity)
            return RedisDirectory(
                target,
                prefix=prefix,
                node_id=node_id,
                broker=broker,
                metrics=metrics,
                tag=tag,
                roster_max_bytes=roster_max_bytes,
            )

        def keeper_of(_: str, target: RedisTarget) -> RedisHistory:
            return RedisHistory(
                target, prefix=prefix, node_id=node_id, metrics=metrics, payload_max_bytes=payload_max_bytes
            )

        brokers = targets.map(broker_of)
        directories, keepers = targets.map(directory_of), targets.map(keeper_of)
        reports = [each.report for each in directories]
        if is_several:
            parts = SpreadBroker(brokers, metrics=metrics), SpreadDirectory(directories), SpreadHistory(keepers)
            return cls(*parts, targets, prefix, node_id, reports)
        return cls(brokers.first, directories.first, keepers.first, targets, prefix, node_id, reports)

    @classmethod
    def _of_cluster(
        cls,
        targets: Spread[RedisTarget],
        cluster: ShardMap,
        *,
        prefix: str,
        node_id: str,
        metrics: Metrics,
        payload_max_bytes: int,
        roster_max_bytes: int,
    ) -> Self:
        target = targets.first
        broker = ClusterBroker(cluster, prefix=prefix, node_id=node_id, metrics=metrics)
        directory = RedisDirectory(
            target,
            prefix=prefix,
            node_id=node_id,
            broker=broker,
            metrics=metrics,
            roster_max_bytes=roster_max_bytes,
        )
        keeper = RedisHistory(
            target, prefix=prefix, node_id=node_id, metrics=metrics, payload_max_bytes=payload_max_bytes
        )
        return cls(broker, directory, keeper, targets, prefix, node_id, [directory.report])

    def revocations(self, metrics: Metrics, *, keep_s: float) -> Revocations:
        """Make the list of revocations. keep_s: the longest time for which a token can be valid."""
        lists = [
            RedisRevocations(target, prefix=self.prefix, node_id=self.node_id, metrics=metrics, keep_s=keep_s)
            for target in self.targets
        ]
        return lists[0] if len(lists) == 1 else SpreadRevocations(lists)

    def write_watch(self, metrics: Metrics) -> WriteWatch:
        """Make the check whether Redis accepts writes and has memory for them."""
        return WriteWatch(tuple(self.targets), prefix=self.prefix, node_id=self.node_id, metrics=metrics)

    def report(self, state: Callable[[], Mapping[str, object]], metrics: Metrics) -> None:
        """Report the node's state and version with each renewal of its leases. state: see NodeReport.begin."""
        for at, report in enumerate(self.reports):
            report.begin(lambda: {**state(), **said()}, on_nodes=None if at else Versions(metrics).see)
