"""All code that depends on Redis: connections, message broker, directory, history, heartbeat, embedded server."""

from gateway.redis.broker import RedisBroker
from gateway.redis.directory import RedisDirectory
from gateway.redis.embedded import EmbeddedServer
from gateway.redis.heartbeat import Heartbeat, NodeState, read_nodes
from gateway.redis.history import RedisHistory
from gateway.redis.lease import Timings
from gateway.redis.names import channel_name
from gateway.redis.revocations import RedisRevocations
from gateway.redis.target import RedisTarget
from gateway.redis.topology import Topology

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
