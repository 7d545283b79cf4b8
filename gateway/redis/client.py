"""Connections of redis-py to a Redis that moves: each finds its server when it connects, and leaves a wrong one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from gateway.redis.wire import DialError

if TYPE_CHECKING:  # a target makes clients, not the other way round
    from gateway.redis.target import RedisTarget

__all__ = ["routed_pool"]


class _Routed(Connection):
    """A connection to whatever the target is at the time."""

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
        """Send, but not to a server that others have found to be the wrong one since we connected."""
        route = self._target.route
        latest = None if route is None else route.latest
        if latest is not None and self.is_connected and (latest.host, latest.port) != (self.host, self.port):
            await self.disconnect()  # the next line connects again
        await super().send_packed_command(*arguments, **options)

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        """Read, and give the connection up where the primary has become a replica."""
        try:
            return await super().read_response(*arguments, **options)
        except ReadOnlyError:
            await self.disconnect()
            raise


class _RoutedTls(_Routed, SSLConnection):
    """The same by TLS."""


def routed_pool(target: "RedisTarget", options: Mapping[str, Any]) -> ConnectionPool:
    """Make a pool for a Redis client. options: of its connections, as redis-py names them."""
    wanted = dict(options)
    kind = _RoutedTls if wanted.pop("ssl", False) else _Routed
    return ConnectionPool(connection_class=kind, target=target, **wanted)
