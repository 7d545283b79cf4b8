"""RedisTarget: everything needed to connect to one Redis, from its URL (grammar: gateway/redis/url.py).

No repr and no log contains a password.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from snorky.gateway.errors import ConfigurationError
from snorky.gateway.redis.admin.redis_py import routed_pool
from snorky.gateway.redis.cluster.shard_map import Cluster
from snorky.gateway.redis.connection.sentinel import Sentinels
from snorky.gateway.redis.url import parse_redis_url

__all__ = ["RedisTarget"]

_TLS_PATHS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password")


class Route(Protocol):
    """Finds the current server of a target whose server may change."""

    @property
    def addresses(self) -> str:
        """HOST:PORT of the servers that are asked, separated by commas."""

    @property
    def latest(self) -> "RedisTarget | None":
        """The server found last."""

    async def find(self, *, max_age_s: float = 0.0) -> "RedisTarget":
        """Find the server; reuses a result of the last `max_age_s`. Raises DialError."""


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """The address and login of a Redis. Made by `from_url`.

    route: finds the server, if it may change; then host, port and path are meaningless until `resolved`. sentinels: the
    route, if it uses Sentinel. cluster: set for a Cluster; one connects to the targets of its shards, not to this one.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None  # a Unix socket; then host and port are meaningless
    db: int = 0  # for commands only: pub/sub has no databases
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    tls_options: Mapping[str, str | bool] = field(default_factory=dict, repr=False)  # as redis-py names them
    route: Route | None = field(default=None, repr=False, compare=False)
    sentinels: Sentinels | None = field(default=None, repr=False, compare=False)
    cluster: Cluster | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_url(cls, url: object) -> "RedisTarget":
        """Parse one URL. Raises ConfigurationError: invalid URL, unknown option, unreadable certificate."""
        if not isinstance(url, str):
            raise ConfigurationError('redis_url is not one URL; write "redis://127.0.0.1:6379/0"')
        try:
            read = parse_redis_url(url)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        target = cls(
            host=read.addresses[0][0],
            port=read.addresses[0][1],
            path=read.path,
            db=read.db,
            username=read.username,
            password=read.password,
            tls=None if read.tls is None else _tls_context(read.tls),
            tls_options=read.tls or {},
        )
        if read.is_cluster:
            cluster = Cluster([replace(target, host=host, port=port) for host, port in read.addresses])
            return replace(target, cluster=cluster)
        if not read.is_sentinel:
            return target
        known = replace(target, db=0, username=read.sentinel_username, password=read.sentinel_password)
        watchers = [replace(known, host=host, port=port) for host, port in read.addresses]
        sentinels = Sentinels(watchers, name=read.name, primary=target)
        return replace(target, route=sentinels, sentinels=sentinels)

    def of(self, name: str | bytes) -> "RedisTarget":
        """Return the target of a key or channel: itself, or in a Cluster one that follows the primary of its slot."""
        return (
            self if self.cluster is None else self.cluster.target_of(name if isinstance(name, bytes) else name.encode())
        )

    @property
    def is_moving(self) -> bool:
        """True if the server may change (Sentinel, Cluster)."""
        return self.route is not None

    async def resolved(self, *, max_age_s: float = 0.0) -> "RedisTarget":
        """Return the target of the current server; itself without a route. max_age_s: see Route.find.

        Raises DialError: the server cannot be found.
        """
        return self if self.route is None else await self.route.find(max_age_s=max_age_s)

    @property
    def safe_url(self) -> str:
        """The URL without user, password and options, for logs."""
        if self.path is not None:
            return f"unix://{self.path}?db={self.db}"
        scheme = "redis" if self.tls is None else "rediss"
        if self.cluster is not None:
            return f"{scheme}+cluster://{self.cluster.addresses}"
        if self.sentinels is not None:
            return f"{scheme}+sentinel://{self.sentinels.addresses}/{self.sentinels.name}/{self.db}"
        if self.route is not None:
            return f"{scheme}+cluster://{self.route.addresses}"
        return f"{scheme}://{self.address}/{self.db}"

    @property
    def identity(self) -> str:
        """Identifies this Redis independently of its current server: the URL without secrets and sentinels."""
        if self.sentinels is None:
            return self.safe_url
        return f"{'redis' if self.tls is None else 'rediss'}+sentinel://{self.sentinels.name}/{self.db}"

    @property
    def address(self) -> str:
        """HOST:PORT, or the socket's path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.path is None else self.path

    def client(self, *, timeout_s: float = 2.0, max_connections: int = 8) -> "Redis":
        """Make a client for commands; it connects when first used, and must be closed with `aclose()`.

        timeout_s: for connecting and for every reply. Retries are disabled, because an increment or a publication that
        is sent twice may be executed twice.
        """
        where: dict[str, Any] = {"host": self.host, "port": self.port}
        if self.path is not None:
            where = {"unix_socket_path": self.path}
        elif self.tls is not None:
            where |= {"ssl": True, **self.tls_options}
        options: dict[str, Any] = {
            "db": self.db,
            "username": self.username,
            "password": self.password,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "max_connections": max_connections,
            "protocol": 2,  # same as our own connections
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,  # no CLIENT SETINFO, so the ACL user needs no permission for it
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.route is not None:
            return Redis.from_pool(routed_pool(self, where | options))
        return Redis(**where, **options)


def _tls_context(options: Mapping[str, str | bool]) -> ssl.SSLContext:
    """Make the TLS context, when settings are read: so a missing file is reported at the start, not at a reconnect."""
    paths = {name: str(options[name]) for name in _TLS_PATHS if name in options}
    try:
        context = ssl.create_default_context(cafile=paths.get("ssl_ca_certs"), capath=paths.get("ssl_ca_path"))
        context.check_hostname = options.get("ssl_check_hostname") is not False
        if "ssl_certfile" in paths:
            context.load_cert_chain(paths["ssl_certfile"], paths.get("ssl_keyfile"), paths.get("ssl_password"))
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(f"{name}={path}" for name, path in paths.items() if name != "ssl_password")
        raise ConfigurationError(f"redis_url: cannot load certificates ({names}): {error}") from error
    return context
