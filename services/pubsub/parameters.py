"""Parameters of pub/sub commands: positions, limits and idempotency keys, parsed and checked."""

import hashlib
from typing import Any, Final

from snorky.gateway import Connection, Order, Position, json_size, stated_identity
from snorky.services.rpc import RPCError

__all__ = [
    "LIMIT_DEFAULT",
    "LIMIT_MAX",
    "check_flag",
    "limit_of",
    "once_of",
    "order_of",
    "position_of",
    "recovery_of",
    "tags_of",
]

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 300  # the maximum of a recovery too
POSITION_MAX_BYTES: Final = 200
KEY_MAX_BYTES: Final = 255
TAGS_MAX_BYTES: Final = 1_024  # as JSON; each push and each entry of a history has them
_OFFSET_MAX: Final = 2**53 - 1  # integers are exact up to here in Lua and JavaScript


def recovery_of(recover: Any) -> tuple[bool, Position | None]:
    """Parse `recover`: whether the client asks to recover, and since which position. Raises RPCError."""
    if recover is None or isinstance(recover, bool):
        return recover is True, None
    return True, position_of(recover)


def check_flag(value: Any) -> None:
    """Check that a parameter is true or false. Raises RPCError."""
    if not isinstance(value, bool):
        raise _invalid()


def position_of(text: Any) -> Position | None:
    """Parse a position, "EPOCH:OFFSET:TAG"; None stays None. Raises RPCError.

    "EPOCH:OFFSET" is a position without a tag, and ":OFFSET" one of the present epoch: `Subscribing.located` completes
    both.
    """
    if text is None:
        return None
    try:
        if not isinstance(text, str) or len(text.encode()) > POSITION_MAX_BYTES:
            raise ValueError("no text, or too long")
        epoch, _, offset = text.partition(":")
        is_partial = offset.isascii() and offset.isdigit()
        position = Position(epoch, int(offset), "") if is_partial else Position.parse(text)
    except ValueError:
        raise _invalid() from None
    if position.offset > _OFFSET_MAX:
        raise _invalid()
    return position


def order_of(order: Any) -> Order | None:
    """Check in which order the client asks for messages; None stays None. Raises RPCError."""
    if order is None:
        return None
    if order not in ("newest", "oldest"):
        raise _invalid()
    return "newest" if order == "newest" else "oldest"


def limit_of(limit: Any, at_least: int = 1) -> int:
    """Check how many messages the client asks for. Raises RPCError."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not at_least <= limit <= LIMIT_MAX:
        raise _invalid()
    return limit


def once_of(key: Any, connection: Connection | None = None) -> str | None:
    """Return a caller's idempotency key with its scope; None stays None. Raises RPCError.

    connection: the client's. Its key is scoped to its identity, on any connection; without an identity, to this
    connection. None: the scope shared by the backend and callers of the Redis function snorky_publish.
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
    identity = hashlib.blake2b(who.encode(), digest_size=16).hexdigest()  # hashed: has no blanks
    return f"identity {identity} {key}"


def tags_of(tags: Any) -> dict[str, str] | None:
    """Check the tags of a publication, an object of texts; None stays None. Raises RPCError."""
    if tags is None:
        return None
    if not isinstance(tags, dict) or not all(isinstance(each, str) for each in tags.values()):
        raise _invalid()
    if json_size(tags) > TAGS_MAX_BYTES:
        raise _invalid()
    return tags


def _invalid() -> RPCError:
    return RPCError("Invalid params", "invalid_params")
