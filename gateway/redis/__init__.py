"""All code that depends on Redis: connections, message broker, directory, history, embedded server."""

from snorky.gateway.redis.backend import RedisBackend
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.directory.directory import RedisDirectory
from snorky.gateway.redis.directory.lease import Timings
from snorky.gateway.redis.embedded.server import EmbeddedServer
from snorky.gateway.redis.history.store import RedisHistory
from snorky.gateway.redis.keys import channel_name
from snorky.gateway.redis.pubsub.broker import RedisBroker
from snorky.gateway.redis.revocations import RedisRevocations

__all__ = [
    "EmbeddedServer",
    "RedisBackend",
    "RedisBroker",
    "RedisDirectory",
    "RedisHistory",
    "RedisRevocations",
    "RedisTarget",
    "Timings",
    "channel_name",
]
