"""RedisTarget: which Redis, spoken to how. One URL in, everything that connecting needs out.

    redis://USER:PASSWORD@HOST:PORT/DB                      plain TCP
    rediss://...                                            TLS, always verified
    unix:///PATH?db=N                                       Unix socket
    redis+sentinel://USER:PASSWORD@HOST:PORT,.../NAME/DB    the primary that these sentinels know as NAME
    rediss+sentinel://...                                   the same, all by TLS
    redis+cluster://USER:PASSWORD@HOST:PORT,...             the Cluster that these servers are some of; rediss+cluster

User and password are percent-decoded. Options after `?` have the names that redis-py gives them: db,
ssl_ca_certs, ssl_ca_path, ssl_certfile, ssl_keyfile, ssl_password, ssl_check_hostname; and of sentinels, which have
users of their own, sentinel_username and sentinel_password. Anything else is refused: an option that is silently
ignored is a setting that somebody relies on. No password is in any repr or log.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from gateway.errors import ConfigurationError
from gateway.redis.client import routed_pool
from gateway.redis.cluster import Cluster
from gateway.redis.sentinels import Sentinels

__all__ = ["RedisTarget"]

_TLS_PATHS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password")
_TLS_OPTIONS = {"db", "ssl_check_hostname", *_TLS_PATHS}
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
_OPTIONS = {
    "redis": {"db"},
    "unix": {"db"},
    "rediss": _TLS_OPTIONS,
    "redis+sentinel": {"db"} | _SENTINEL_OPTIONS,
    "rediss+sentinel": _TLS_OPTIONS | _SENTINEL_OPTIONS,
    "redis+cluster": set(),
    "rediss+cluster": _TLS_OPTIONS - {"db"},
}
_SENTINEL_PORT = 26379
_EXAMPLE = 'write "redis://127.0.0.1:6379/0", "rediss://HOST:PORT/0" for TLS, or "unix:///path/to/socket"'
_CLUSTER_EXAMPLE = 'write "redis+cluster://HOST:PORT,HOST:PORT,HOST:PORT"'
_SENTINEL_EXAMPLE = 'write "redis+sentinel://HOST:PORT,HOST:PORT,HOST:PORT/NAME/0", NAME as in "sentinel monitor NAME"'
_EXAMPLES = {"sentinel": _SENTINEL_EXAMPLE, "cluster": _CLUSTER_EXAMPLE}


class Route(Protocol):
    """Knows where a target is that moves."""

    @property
    def addresses(self) -> str:
        """Who is asked: HOST:PORT of each, with commas between."""

    @property
    def latest(self) -> "RedisTarget | None":
        """The server that was found last."""

    async def find(self, *, max_age_s: float = 0.0) -> "RedisTarget":
        """Tell the server; what was asked `max_age_s` ago counts. Raises DialError."""


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """Where a Redis is and how to log in. Made by `from_url`.

    route: knows where it is; then host, port and path mean nothing until `resolved`. sentinels: the same, if it is by
    them. cluster: of many servers; such a target is none itself, but its shards' are.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None  # a Unix socket; then host and port mean nothing
    db: int = 0  # for commands only: pub/sub knows no databases
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)
    tls_options: Mapping[str, str | bool] = field(default_factory=dict, repr=False)  # as redis-py names them
    route: Route | None = field(default=None, repr=False, compare=False)
    sentinels: Sentinels | None = field(default=None, repr=False, compare=False)
    cluster: Cluster | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_url(cls, url: object) -> "RedisTarget":
        """Read one URL. Raises ConfigurationError: not one Redis, unknown option, unreadable certificate."""
        if not isinstance(url, str):
            raise ConfigurationError(f"redis_url is not one URL; {_EXAMPLE}")
        scheme = url.partition("://")[0].lower()
        if scheme not in _OPTIONS or "://" not in url:
            raise ConfigurationError(f"redis_url is no Redis URL: {_EXAMPLE}")
        example = _EXAMPLES.get(scheme.partition("+")[2], _EXAMPLE)
        try:
            parts = urlsplit(url)
            credentials, _, places = parts.netloc.rpartition("@")
            if "+" not in scheme and "," in places:
                raise ConfigurationError(f"redis_url is a list of servers, and no scheme that takes one: {example}")
            servers = [urlsplit(f"//{place}") for place in places.split(",")]
            default = _SENTINEL_PORT if scheme.endswith("+sentinel") else 6379
            addresses = [(unquote(each.hostname or "127.0.0.1"), each.port or default) for each in servers]
        except ValueError:  # its text would quote the URL, and the password with it
            hint = "in a password, write / as %2F, @ as %40, # as %23"
            raise ConfigurationError(f"redis_url has no valid host and port: {example}; {hint}") from None
        options = _options(parts, scheme)
        steps = parts.path.strip("/").split("/") if scheme != "unix" else [""]
        name = unquote(steps.pop(0)) if scheme.endswith("+sentinel") else ""
        db = options.pop("db", "") or "/".join(steps) or "0"
        if not (db.isascii() and db.isdigit()):
            raise ConfigurationError("redis_url: the database is no number; write it as /0 or ?db=0")
        if scheme.endswith("+sentinel") and not (name and all(each.hostname for each in servers)):
            raise ConfigurationError(f"redis_url names no sentinels, or nothing that they know: {example}")
        if scheme.endswith("+cluster") and (db != "0" or not all(each.hostname for each in servers)):
            raise ConfigurationError(f"redis_url names no servers, or a database, which a Cluster has not: {example}")
        path = unquote(parts.path) if scheme == "unix" else None
        if path == "":
            raise ConfigurationError('redis_url names no socket; write "unix:///path/to/socket"')
        sentinel_login = [options.pop(option, None) for option in ("sentinel_username", "sentinel_password")]
        tls_options: dict[str, str | bool] = dict(options)
        if "ssl_check_hostname" in options:
            tls_options["ssl_check_hostname"] = _boolean("ssl_check_hostname", options["ssl_check_hostname"])
        user, _, password = credentials.partition(":")
        target = cls(
            host=addresses[0][0],
            port=addresses[0][1],
            path=path,
            db=int(db),
            username=unquote(user) or None,
            password=unquote(password) or None,
            tls=_tls_context(tls_options) if scheme.startswith("rediss") else None,
            tls_options=tls_options,
        )
        if "+" not in scheme:
            return target
        if scheme.endswith("+cluster"):
            cluster = Cluster([replace(target, host=host, port=port) for host, port in addresses])
            return replace(target, cluster=cluster)
        known = replace(target, db=0, username=sentinel_login[0], password=sentinel_login[1])
        watchers = [replace(known, host=host, port=port) for host, port in addresses]
        sentinels = Sentinels(watchers, name=name, primary=target)
        return replace(target, route=sentinels, sentinels=sentinels)

    def of(self, name: str | bytes) -> "RedisTarget":
        """Make the target of a key or channel: in a Cluster the primary that has its slot, wherever that is."""
        return (
            self if self.cluster is None else self.cluster.target_of(name if isinstance(name, bytes) else name.encode())
        )

    @property
    def is_moving(self) -> bool:
        """True if it may be another server the next time."""
        return self.route is not None

    async def resolved(self, *, max_age_s: float = 0.0) -> "RedisTarget":
        """Tell the one server that this is now; asks its route, if there is one that was not asked `max_age_s` ago.

        Raises DialError: it cannot be found.
        """
        return self if self.route is None else await self.route.find(max_age_s=max_age_s)

    @property
    def safe_url(self) -> str:
        """The URL without user, password and options: fit for logs."""
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
        """What tells it from other Redis, wherever it is at present: its URL without secrets, and without sentinels."""
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

        timeout_s: for connecting and for every reply. It never sends anything twice: the library's default
        retry does, and an increment or a publish sent twice happened twice.
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
            "protocol": 2,  # one dialect with our own connections
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,  # no CLIENT SETINFO: one permission less that an ACL user needs
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.route is not None:
            return Redis.from_pool(routed_pool(self, where | options))
        return Redis(**where, **options)


def _options(parts: SplitResult, scheme: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "ssl_cert_reqs" and value == "required" and scheme == "rediss":
            continue  # what we do anyway
        if name == "ssl_cert_reqs":
            raise ConfigurationError("redis_url: certificates are always verified; name the CA by ssl_ca_certs=PATH")
        if name not in _OPTIONS[scheme]:
            known = ", ".join(sorted(_OPTIONS[scheme]))
            raise ConfigurationError(f"redis_url: option {name[:40]!r} is unknown for {scheme}://; known are: {known}")
        if not value:
            raise ConfigurationError(f"redis_url: option {name} is empty")
        options[name] = value
    return options


def _boolean(name: str, value: str) -> bool:
    if value.lower() in ("true", "1", "yes"):
        return True
    if value.lower() in ("false", "0", "no"):
        return False
    raise ConfigurationError(f"redis_url: {name} is true or false")


def _tls_context(options: Mapping[str, str | bool]) -> ssl.SSLContext:
    """Made once, when settings are read: a missing file is an error of the start, not of the first reconnect."""
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
