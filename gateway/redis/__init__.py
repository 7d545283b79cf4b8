"""All code that depends on Redis: connections, message broker, directory, history, heartbeat, embedded server."""

from snorky.gateway.redis.broker import RedisBroker
from snorky.gateway.redis.directory import RedisDirectory
from snorky.gateway.redis.embedded import EmbeddedServer
from snorky.gateway.redis.heartbeat import Heartbeat, NodeState, read_nodes
from snorky.gateway.redis.history import RedisHistory
from snorky.gateway.redis.lease import Timings
from snorky.gateway.redis.names import channel_name
from snorky.gateway.redis.revocations import RedisRevocations
from snorky.gateway.redis.target import RedisTarget
from snorky.gateway.redis.topology import Topology

__all__ = [
    "EmbeddedServer",
    "Heartbeat",
    "NodeState",
    "RedisBroker",
    "RedisDirectory",
    "RedisHistory",
    "RedisRevocations",
    "RedisTarget",
    "Timings",
    "Topology",
    "channel_name",
    "read_nodes",
]
