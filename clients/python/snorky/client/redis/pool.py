"""Pools of connections to one or several Redis, which never send a command twice.

    URL                                              as url.py parses it; the same grammar as for nodes
    URL,URL,...                                      several independent Redis: each channel is on one of them

redis-py's own retry is off: it would repeat commands that may have been executed. Pools are thread-safe and may be
created before a fork: the child opens its own connections.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from snorky.client.redis.cluster import Cluster, Server
from snorky.client.redis.url import RedisUrl, parse_redis_url
from snorky.client.redis.versions import silent_options

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

__all__ = ["Pools"]

CONNECTIONS_MAX: Final = 10_000  # each thread uses one at a time


class Pools:
    """One pool for each Redis of a deployment; they connect when used.

    timeout_s: for connecting, and for each read and write. Raises ValueError: a URL is not valid; ImportError: redis-py
    is missing.
    """

    def __init__(self, urls: str, *, timeout_s: float) -> None:
        # a comma separates URLs if a scheme follows it; else it separates addresses within one URL
        each = [url.strip() for url in re.split(r",\s*(?=[a-z+]+://)", urls)]
        self._servers: Mapping[str, Server] = dict(_server(url, timeout_s) for url in each)
        if len(self._servers) != len(each):
            raise ValueError("redis_url: one Redis is named twice")
        if len(each) > 1 and any(server.is_sharded for server in self._servers.values()):
            raise ValueError("redis_url: a Redis Cluster cannot be combined with other URLs: give its URL alone")

    @property
    def identities(self) -> set[str]:
        """The identities of the Redis, the same as on nodes."""
        return set(self._servers)

    def of(self, key: str) -> Server:
        """Return the Redis that has a channel. key: SERVICE:NAME.

        Rendezvous hashing, as on nodes: the Redis with the highest blake2b-64 of "IDENTITY KEY" has the channel.
        """
        return self._servers[max(self._servers, key=lambda identity: (_weight(identity, key), identity))]

    def disconnect(self) -> None:
        """Close all connections."""
        for server in self._servers.values():
            server.disconnect()


def _weight(identity: str, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{identity} {key}".encode(), digest_size=8).digest(), "big")


def _server(url: str, timeout_s: float) -> tuple[str, Server]:
    """Create the pools of a Redis; return its identity, which is its URL without secrets, and the pools."""
    try:
        from redis.backoff import NoBackoff
        from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
        from redis.retry import Retry
    except ImportError as error:
        raise ImportError("Publisher needs redis-py: pip install 'snorky-client[redis]'") from error
    read = parse_redis_url(url)
    options: dict[str, Any] = {
        "username": read.username,
        "password": read.password,
        "max_connections": CONNECTIONS_MAX,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        **silent_options(),
    }
    if read.tls is not None:
        options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **read.tls}
    if read.is_sentinel:
        return read.identity, Server(_sentinel_pool(read, options), is_fixed=False)
    kind = Connection if read.tls is None else SSLConnection

    def make(address: tuple[str, int]) -> "ConnectionPool":
        where: dict[str, Any] = {"connection_class": kind, "host": address[0], "port": address[1], "db": read.db}
        return ConnectionPool(**where, **options)

    if read.is_cluster:
        return read.identity, Cluster(read.addresses, make)
    if read.path is None:
        return read.identity, Server(make(read.addresses[0]))
    where: dict[str, Any] = {"connection_class": UnixDomainSocketConnection, "path": read.path, "db": read.db}
    return read.identity, Server(ConnectionPool(**where, **options))


def _sentinel_pool(read: RedisUrl, options: dict[str, Any]) -> "ConnectionPool":
    from redis.sentinel import Sentinel

    if read.tls is not None:
        options = {**options, "ssl": True}
    asked = {**options, "username": read.sentinel_username, "password": read.sentinel_password}
    sentinel: Any = Sentinel
    watchers = sentinel(list(read.addresses), sentinel_kwargs=asked)
    primary = watchers.master_for(read.name, db=read.db, **options)
    return cast("ConnectionPool", primary.connection_pool)
