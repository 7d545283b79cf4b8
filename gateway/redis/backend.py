"""RedisBackend: builds the Redis parts of a node (broker, directory, history) for one Redis, several, or a Cluster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from snorky.gateway.config.limits import PAYLOAD_MAX_BYTES
from snorky.gateway.contracts.broker import Broker
from snorky.gateway.contracts.control import ControlLog
from snorky.gateway.contracts.directory import Directory
from snorky.gateway.contracts.history import HistoryStore
from snorky.gateway.contracts.limits import LimitStore
from snorky.gateway.contracts.revocations import Revocations
from snorky.gateway.contracts.subscriptions import SubscriptionStore
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.cluster.shard_map import shard_map_of
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.timeouts import DEFAULT_TIMEOUTS, RedisTimeouts
from snorky.gateway.redis.directory.node_states import NodeReport
from snorky.gateway.redis.directory.versions import Versions, said
from snorky.gateway.redis.limits.store import RedisLimitStore
from snorky.gateway.redis.multi.broker import SpreadBroker
from snorky.gateway.redis.multi.control import SpreadControlLog
from snorky.gateway.redis.multi.directory import SpreadDirectory, tag_of
from snorky.gateway.redis.multi.hashing import Spread, targets_of
from snorky.gateway.redis.multi.history import SpreadHistory
from snorky.gateway.redis.multi.revocations import SpreadRevocations
from snorky.gateway.redis.parts import ClusterParts, RedisParts, ServerParts
from snorky.gateway.redis.subscriptions import RedisSubscriptionStore
from snorky.gateway.redis.webhooks import RedisWebhookLog
from snorky.gateway.redis.write_watch import WriteWatch

__all__ = ["RedisBackend", "parts_of"]


@dataclass(frozen=True, slots=True)
class RedisBackend:
    """The Redis parts of one node, not started. Made by `of`."""

    broker: Broker
    directory: Directory
    history_store: HistoryStore
    targets: Spread[RedisTarget]
    parts: Spread[RedisParts]
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
        timeouts = RedisTimeouts()
        parts = targets.map(
            lambda _, target: parts_of(target, prefix=prefix, node_id=node_id, metrics=metrics, timeouts=timeouts)
        )
        is_several = len(targets) > 1
        brokers = parts.map(lambda _, each: each.broker())
        directories = parts.map(
            lambda identity, each: each.directory(
                brokers.at(identity), tag=tag_of(identity) if is_several else "", roster_max_bytes=roster_max_bytes
            )
        )
        histories = parts.map(lambda _, each: each.history(payload_max_bytes=payload_max_bytes))
        for directory, history in zip(directories, histories, strict=True):
            directory.carry(history.functions)
        reports = [each.report for each in directories]
        if is_several:
            together = SpreadBroker(brokers, metrics=metrics), SpreadDirectory(directories), SpreadHistory(histories)
            return cls(*together, targets, parts, prefix, node_id, reports)
        return cls(brokers.first, directories.first, histories.first, targets, parts, prefix, node_id, reports)

    def revocations(self, *, keep_s: float) -> Revocations:
        """Make the list of revocations. keep_s: the longest time for which a token can be valid."""
        lists = [each.revocations(keep_s=keep_s) for each in self.parts]
        return lists[0] if len(lists) == 1 else SpreadRevocations(lists)

    def control_log(self) -> ControlLog:
        """Make the list of control orders."""
        logs = [each.control_log() for each in self.parts]
        return logs[0] if len(logs) == 1 else SpreadControlLog(logs)

    def limit_store(self) -> LimitStore:
        """Make the store of what nodes count against limits."""
        commands = self.parts.map(lambda _, each: each.limit_commands())
        return RedisLimitStore(list(commands), commands.of, prefix=self.prefix, node_id=self.node_id)

    def subscription_store(self) -> SubscriptionStore:
        """Make the store of server-side subscriptions."""
        commands = self.parts.map(lambda _, each: each.commands("subscriptions", RedisTimeouts().read_timeout_s))
        return RedisSubscriptionStore(commands, prefix=self.prefix)

    def webhook_log(self, app_id: str, wanted: Sequence[str]) -> RedisWebhookLog:
        """Make what nodes share for the webhooks of an app. wanted: see RedisWebhookLog."""
        commands = self.parts.of(f"webhooks {app_id}").commands("webhooks", RedisTimeouts().read_timeout_s)
        return RedisWebhookLog(commands, prefix=self.prefix, app_id=app_id, node_id=self.node_id, wanted=wanted)

    def write_watch(self, metrics: Metrics) -> WriteWatch:
        """Make the check whether Redis accepts writes and has memory for them."""
        return WriteWatch(tuple(self.targets), prefix=self.prefix, node_id=self.node_id, metrics=metrics)

    def report(self, state: Callable[[], Mapping[str, object]], metrics: Metrics) -> None:
        """Report the node's state and version with each renewal of its leases. state: see NodeReport.begin."""
        for at, report in enumerate(self.reports):
            report.begin(lambda: {**state(), **said()}, on_nodes=None if at else Versions(metrics).see)


def parts_of(
    target: RedisTarget, *, prefix: str, node_id: str, metrics: Metrics, timeouts: RedisTimeouts = DEFAULT_TIMEOUTS
) -> RedisParts:
    """Choose what makes the parts for one Redis: a server (also behind Sentinel), or a Cluster."""
    cluster = shard_map_of(target)
    if cluster is None:
        return ServerParts(target, prefix=prefix, node_id=node_id, metrics=metrics, timeouts=timeouts)
    return ClusterParts(cluster, prefix=prefix, node_id=node_id, metrics=metrics, timeouts=timeouts)
