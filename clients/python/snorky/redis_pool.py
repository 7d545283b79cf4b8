"""Pools of connections to Redis, from one URL or several, that never send anything twice.

    redis://..., rediss://..., unix://...            as redis-py reads them
    redis+sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT/NAME[/DB]     the primary that the sentinels tell; rediss+ for
                                                     TLS; options sentinel_username, sentinel_password
    redis+cluster://[USER:PASSWORD@]HOST:PORT,...    a Redis Cluster, by some of its servers; rediss+ for TLS
    URL,URL,...                                      several independent ones: each channel is on one of them

The library's own retry is off: it would send again what may have been done. Pools may be used by many threads, and
made before a fork: the child opens connections of its own.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from snorky.redis_cluster import Cluster, Server

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

__all__ = ["Pools"]

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_SCHEMES: Final = ("redis://", "rediss://", "unix://")
_CLUSTER_SCHEMES: Final = ("redis+cluster://", "rediss+cluster://")
_SENTINEL_SCHEMES: Final = ("redis+sentinel://", "rediss+sentinel://")


class Pools:
    """One pool for each Redis of a deployment; they connect when they are used.

    timeout_s: to connect, and for each reading and writing. Raises ValueError: a URL cannot be used, ImportError:
    redis-py is not installed.
    """

    def __init__(self, urls: str, *, timeout_s: float) -> None:
        # a comma divides two where a scheme follows, not between the addresses of sentinels
        each = [url.strip() for url in re.split(r",\s*(?=[a-z+]+://)", urls)]
        self._servers: Mapping[str, Server] = dict(_server(url, timeout_s) for url in each)
        if len(self._servers) != len(each):
            raise ValueError("redis_url: one Redis is named twice")

    @property
    def identities(self) -> set[str]:
        """What tells the Redis apart, as nodes do."""
        return set(self._servers)

    def of(self, key: str) -> Server:
        """Find the Redis that has a channel. key: SERVICE:NAME.

        Rendezvous hashing, as nodes do it: the heaviest of blake2b-64 of "IDENTITY KEY" has the channel.
        """
        return self._servers[max(self._servers, key=lambda identity: (_weight(identity, key), identity))]

    def disconnect(self) -> None:
        """Let go of all connections."""
        for server in self._servers.values():
            server.disconnect()


def _weight(identity: str, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{identity} {key}".encode(), digest_size=8).digest(), "big")


def _server(url: str, timeout_s: float) -> tuple[str, Server]:
    """Make a Redis' pools, and its identity: its URL without secrets."""
    try:
        from redis.backoff import NoBackoff
        from redis.connection import ConnectionPool
        from redis.retry import Retry
    except ImportError as error:
        raise ImportError("Publisher needs redis-py: pip install 'snorky-client[redis]'") from error
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,  # no CLIENT SETINFO: one permission less that an ACL user needs
        "max_connections": 10_000,  # as many as there are threads
    }
    if url.startswith(_SENTINEL_SCHEMES):
        identity, pool = _sentinel_pool(url, options)
        return identity, Server(pool, is_fixed=False)
    if url.startswith(_CLUSTER_SCHEMES):
        return _cluster(url, options)
    if not url.startswith(_SCHEMES):
        raise ValueError("redis_url: write redis://, rediss://, unix:// or redis+sentinel://HOST:PORT,.../NAME")
    pool = ConnectionPool.from_url(url, **options)
    return _identity(url, pool.connection_kwargs), Server(pool)


def _cluster(url: str, options: dict[str, Any]) -> tuple[str, Server]:
    from redis.connection import Connection, ConnectionPool, SSLConnection

    parts = urlsplit(url)
    user, _, addresses = parts.netloc.rpartition("@")
    try:
        seeds = [_address(each, default_port=_PORT) for each in addresses.split(",")]
    except ValueError:
        seeds = []
    if not seeds or parts.path.strip("/") or parts.query:
        raise ValueError("redis_url: write redis+cluster://HOST:PORT,HOST:PORT without a database")
    options |= _login(user)
    kind = SSLConnection if parts.scheme.startswith("rediss") else Connection

    def make(address: tuple[str, int]) -> "ConnectionPool":
        return ConnectionPool(connection_class=kind, host=address[0], port=address[1], **options)

    return f"{parts.scheme}://{addresses}", Cluster(seeds, make)


def _identity(url: str, options: Mapping[str, Any]) -> str:
    db = options.get("db") or 0
    if "path" in options:
        return f"unix://{options['path']}?db={db}"
    host = options.get("host", "127.0.0.1")
    host = f"[{host}]" if ":" in host else host
    return f"{url.partition('://')[0]}://{host}:{options.get('port', 6379)}/{db}"


def _sentinel_pool(url: str, options: dict[str, Any]) -> tuple[str, "ConnectionPool"]:
    from redis.sentinel import Sentinel

    parts = urlsplit(url)
    user, _, addresses = parts.netloc.rpartition("@")
    name, _, db = parts.path.strip("/").partition("/")
    asked = {key: options[key] for key in ("socket_timeout", "socket_connect_timeout", "retry", "protocol")}
    login = dict(parse_qsl(parts.query))
    try:
        sentinels = [_address(each, default_port=_SENTINEL_PORT) for each in addresses.split(",")]
    except ValueError:
        sentinels = []  # an error's text must not quote the URL, and the password with it
    if (
        not sentinels
        or not name
        or not (db or "0").isdecimal()
        or login.keys() - {"sentinel_username", "sentinel_password"}
    ):
        raise ValueError("redis_url: write redis+sentinel://HOST:PORT,HOST:PORT/NAME or .../NAME/DB")
    asked |= {option.removeprefix("sentinel_"): value for option, value in login.items()}
    options |= _login(user)
    if parts.scheme.startswith("rediss"):
        asked["ssl"] = options["ssl"] = True
    sentinel: Any = Sentinel
    primary = sentinel(sentinels, sentinel_kwargs=asked).master_for(name, db=int(db or 0), **options)
    return f"{parts.scheme}://{name}/{int(db or 0)}", cast("ConnectionPool", primary.connection_pool)


def _login(user: str) -> dict[str, str | None]:
    username, _, password = user.partition(":")
    return {"username": unquote(username) or None, "password": unquote(password) or None} if user else {}


def _address(text: str, *, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or default_port
