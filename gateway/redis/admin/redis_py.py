"""redis-py connections to a Redis whose server changes (Sentinel, Cluster): each one finds the current server."""

from collections.abc import Mapping
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError
from redis.maint_notifications import MaintNotificationsConfig

from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.resp import DialError

__all__ = ["client_of"]

CONNECTIONS_MAX: Final = 8


class _Routed(Connection):
    """A connection to the target's current server."""

    def __init__(self, *, target: RedisTarget, **options: Any) -> None:
        self._target = target
        super().__init__(**options)

    async def _connect(self) -> None:
        try:
            server = await self._target.resolved()
        except DialError as error:
            raise RedisConnectionError(str(error)) from error
        self.host, self.port = server.host, server.port
        await super()._connect()  # type: ignore[no-untyped-call]  # redis-py has no types here

    async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        """Send; first reconnect if the target has found another server since this connection was made."""
        route = self._target.route
        latest = None if route is None else route.latest
        if latest is not None and self.is_connected and (latest.host, latest.port) != (self.host, self.port):
            await self.disconnect()  # the next line connects again
        await super().send_packed_command(*arguments, **options)

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        """Read; disconnect if the primary has become a replica."""
        try:
            return await super().read_response(*arguments, **options)
        except ReadOnlyError:
            await self.disconnect()
            raise


class _RoutedTls(_Routed, SSLConnection):
    """The same over TLS."""


def client_of(target: RedisTarget, *, timeout_s: float = 2.0) -> Redis:
    """Make a client for commands; it connects when first used, and must be closed with `aclose()`.

    timeout_s: for connecting and for every reply. Retries are disabled, because an increment or a publication that
    is sent twice may be executed twice.
    """
    where: dict[str, Any] = {"host": target.host, "port": target.port}
    if target.path is not None:
        where = {"unix_socket_path": target.path}
    elif target.tls is not None:
        where |= {"ssl": True, **target.tls_options}
    options: dict[str, Any] = {
        "db": target.db,
        "username": target.username,
        "password": target.password,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "max_connections": CONNECTIONS_MAX,
        "protocol": 2,  # same as our own connections
        "retry": Retry(NoBackoff(), 0),
        "driver_info": None,  # no CLIENT SETINFO, so the ACL user needs no permission for it
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if target.route is not None:
        return Redis.from_pool(_routed_pool(target, where | options))
    return Redis(**where, **options)


def _routed_pool(target: RedisTarget, options: Mapping[str, Any]) -> ConnectionPool:
    """Make a connection pool for a redis-py client. options: redis-py's connection options."""
    wanted = dict(options)
    kind = _RoutedTls if wanted.pop("ssl", False) else _Routed
    return ConnectionPool(connection_class=kind, target=target, **wanted)
