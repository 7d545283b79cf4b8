"""Differences between the versions 5 to 8 of redis-py that concern the publisher."""

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

__all__ = ["connection_of", "silent_options"]


def silent_options() -> dict[str, Any]:
    """Return the connection options that turn off CLIENT SETINFO, so that an ACL user needs no permission for it."""
    from redis.connection import AbstractConnection

    known = inspect.signature(AbstractConnection.__init__).parameters
    if "driver_info" in known:  # since 7.2
        return {"driver_info": None}
    return {name: None for name in ("lib_name", "lib_version") if name in known}


def connection_of(pool: "ConnectionPool") -> Any:
    """Take a connection from a pool. Raises RedisError, OSError."""
    take: Any = pool.get_connection
    return take("_") if _wants_a_name(type(pool)) else take()


@cache
def _wants_a_name(kind: "type[ConnectionPool]") -> bool:
    """Return whether `get_connection` requires a command name: before 5.3; deprecated since."""
    name = inspect.signature(kind.get_connection).parameters["command_name"]
    return name.default is inspect.Parameter.empty
