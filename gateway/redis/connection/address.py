"""RedisTarget: everything needed to connect to one Redis. `snorky.gateway.redis.target` makes it from a URL.

No repr and no log contains a password.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["RedisTarget", "Route", "SentinelRoute", "SlotMap"]


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


class SentinelRoute(Route, Protocol):
    """A route by Sentinel."""

    @property
    def name(self) -> str:
        """The primary's name in the configuration of the sentinels."""


class SlotMap(Protocol):
    """Finds the server of each key in a Cluster."""

    @property
    def addresses(self) -> str:
        """HOST:PORT of the configured servers, separated by commas."""

    def target_of(self, name: bytes) -> "RedisTarget":
        """Make a target that always connects to the primary of a key."""


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """The address and login of a Redis.

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
    sentinels: SentinelRoute | None = field(default=None, repr=False, compare=False)
    cluster: SlotMap | None = field(default=None, repr=False, compare=False)

    def of(self, name: str | bytes) -> "RedisTarget":
        """Return the target of a key or channel: itself, or in a Cluster one that follows the primary of its slot."""
        return (
            self if self.cluster is None else self.cluster.target_of(name if isinstance(name, bytes) else name.encode())
        )

    @property
    def is_cluster(self) -> bool:
        """True for a Cluster."""
        return self.cluster is not None

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
