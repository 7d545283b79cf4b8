"""A pool of connections to Redis, from one URL, that never sends anything twice.

    redis://..., rediss://..., unix://...            as redis-py reads them
    redis+sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT/NAME[/DB]     the primary that the Sentinels tell

The library's own retry is off: it would send again what may have been done. A pool may be used by many threads,
and made before a fork: the child opens connections of its own.
"""

from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

__all__ = ["make_pool"]

_SENTINEL_PORT: Final = 26379


def make_pool(url: str, *, timeout_s: float) -> "ConnectionPool":
    """Make a pool; it connects when it is used. timeout_s: to connect, and for each reading and writing.

    Raises ValueError: the URL cannot be used, ImportError: redis-py is not installed.
    """
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
    if url.startswith("redis+sentinel://"):
        return _sentinel_pool(url, options)
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("redis_url: write redis://, rediss://, unix:// or redis+sentinel://HOST:PORT,.../NAME")
    return ConnectionPool.from_url(url, **options)


def _sentinel_pool(url: str, options: dict[str, Any]) -> "ConnectionPool":
    from redis.sentinel import Sentinel

    parts = urlsplit(url)
    user, _, addresses = parts.netloc.rpartition("@")
    name, _, db = parts.path.strip("/").partition("/")
    try:
        sentinels = [_address(each) for each in addresses.split(",")]
    except ValueError:
        sentinels = []  # an error's text must not quote the URL, and the password with it
    if not sentinels or not name or not (db or "0").isdecimal() or parts.query:
        raise ValueError("redis_url: write redis+sentinel://HOST:PORT,HOST:PORT/NAME or .../NAME/DB")
    username, _, password = user.partition(":")
    login = {"username": unquote(username) or None, "password": unquote(password) or None} if user else {}
    asked = {key: options[key] for key in ("socket_timeout", "socket_connect_timeout", "retry", "protocol")}
    sentinel: Any = Sentinel
    primary = sentinel(sentinels, sentinel_kwargs=asked).master_for(name, db=int(db or 0), **login, **options)
    return cast("ConnectionPool", primary.connection_pool)


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or _SENTINEL_PORT
