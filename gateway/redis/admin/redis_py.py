"""redis-py connections to a Redis whose server changes (Sentinel, Cluster): each one finds the current server."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from snorky.gateway.redis.connection.resp import DialError

if TYPE_CHECKING:  # a target makes clients, not the other way round
    from snorky.gateway.redis.connection.address import RedisTarget

__all__ = ["routed_pool"]


class _Routed(Connection):
    """A connection to the target's current server."""

    def __init__(self, *, target: "RedisTarget", **options: Any) -> None:
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


def routed_pool(target: "RedisTarget", options: Mapping[str, Any]) -> ConnectionPool:
    """Make a connection pool for a redis-py client. options: redis-py's connection options."""
    wanted = dict(options)
    kind = _RoutedTls if wanted.pop("ssl", False) else _Routed
    return ConnectionPool(connection_class=kind, target=target, **wanted)
