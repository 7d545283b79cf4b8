"""What differs between the versions 5 to 8 of redis-py, as far as the publisher uses it."""

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

__all__ = ["connection_of", "silent_options"]


def silent_options() -> dict[str, Any]:
    """Give the options of a connection that sends no CLIENT SETINFO: an ACL user needs one permission less."""
    from redis.connection import AbstractConnection

    known = inspect.signature(AbstractConnection.__init__).parameters
    if "driver_info" in known:  # since 7.2
        return {"driver_info": None}
    return {name: None for name in ("lib_name", "lib_version") if name in known}


def connection_of(pool: "ConnectionPool") -> Any:
    """Take a connection from a pool. Raises RedisError, OSError as the pool does."""
    take: Any = pool.get_connection
    return take("_") if _wants_a_name(type(pool)) else take()


@cache
def _wants_a_name(kind: "type[ConnectionPool]") -> bool:
    """Tell whether a connection is taken for a named command: so before 5.3, and deprecated since."""
    name = inspect.signature(kind.get_connection).parameters["command_name"]
    return name.default is inspect.Parameter.empty
