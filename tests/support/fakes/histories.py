"""History stores under test."""

from typing import Any

from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import RedisHistory, RedisTarget
from snorky.gateway.redis.backend import parts_of
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from tests.support.fakes.brokers import PREFIX

__all__ = ["history_on"]


def history_on(
    target: RedisTarget,
    *,
    prefix: str = PREFIX,
    node_id: str = "node-1",
    timeouts: RedisTimeouts | None = None,
    **options: Any,
) -> RedisHistory:
    """Make a history store on one server or a Cluster. options: see RedisParts.history."""
    parts = parts_of(target, prefix=prefix, node_id=node_id, metrics=Metrics(), timeouts=timeouts or RedisTimeouts())
    return parts.history(**options)
