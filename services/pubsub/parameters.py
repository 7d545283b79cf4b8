"""What clients may write where pub/sub wants a position, a limit, an idempotency key."""

import hashlib
from typing import Any, Final

from gateway import Connection, Position, stated_identity
from services.rpc import RPCError

__all__ = ["LIMIT_DEFAULT", "LIMIT_MAX", "limit_of", "once_of", "position_of", "recovery_of"]

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 300  # as many as a recovery brings
POSITION_MAX_BYTES: Final = 200
KEY_MAX_BYTES: Final = 255
_OFFSET_MAX: Final = 2**53 - 1  # Lua, and JavaScript, count no further


def recovery_of(recover: Any) -> tuple[bool, Position | None]:
    """Read `recover`: does the client ask to recover, and since which position. Raises RPCError."""
    if recover is None or isinstance(recover, bool):
        return recover is True, None
    return True, position_of(recover)


def position_of(text: Any) -> Position | None:
    """Read a position, "EPOCH:OFFSET:TAG"; None = none is given. Raises RPCError."""
    if text is None:
        return None
    try:
        if not isinstance(text, str) or len(text.encode()) > POSITION_MAX_BYTES:
            raise ValueError("no text, or too long")
        position = Position.parse(text)
    except ValueError:
        raise _invalid() from None
    if position.offset > _OFFSET_MAX:
        raise _invalid()
    return position


def limit_of(limit: Any) -> int:
    """Read how many messages are wanted. Raises RPCError."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LIMIT_MAX:
        raise _invalid()
    return limit


def once_of(key: Any, connection: Connection | None = None) -> str | None:
    """Make an idempotency key of the channel from a caller's own; None = none is given. Raises RPCError.

    connection: whose key it is: of its identity, wherever that is connected; without one of this connection alone.
    None: of the backend, and of who calls the function snorky_publish.
    """
    if key is None:
        return None
    if not isinstance(key, str) or not 1 <= len(key.encode()) <= KEY_MAX_BYTES:
        raise _invalid()
    if connection is None:
        return f"backend {key}"
    who = stated_identity(connection.identity)
    if who is None:
        return f"connection {connection.id} {key}"
    identity = hashlib.blake2b(who.encode(), digest_size=16).hexdigest()  # no blank can be forged
    return f"identity {identity} {key}"


def _invalid() -> RPCError:
    return RPCError("Invalid params", "invalid_params")
