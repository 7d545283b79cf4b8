"""Close codes and errors of Pusher's protocol, and their equivalents for Snorky's. Pure.

Clients come back at once after 4200 to 4299, a second later after 4100 to 4199, and not at all after 4000 to 4099.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from snorky.gateway.errors import CloseCode

__all__ = ["PASSING", "ErrorCode", "close_code_of", "status_of"]


class ErrorCode(IntEnum):
    """Codes of `pusher:error` and of close frames."""

    NO_SUCH_APP = 4001
    UNSUPPORTED_PROTOCOL = 4007
    NO_PROTOCOL = 4008
    UNAUTHORIZED = 4009
    OVER_CAPACITY = 4100
    RECONNECT = 4200
    CLIENT_EVENT_REFUSED = 4301
    WATCHLISTS_OFF = 4301  # the same code
    WATCHLIST_TOO_LONG = 4302


_CLOSES: Final[Mapping[int, ErrorCode]] = {
    CloseCode.GOING_AWAY: ErrorCode.RECONNECT,
    CloseCode.RECONNECT: ErrorCode.RECONNECT,
    CloseCode.RESYNC: ErrorCode.RECONNECT,
    CloseCode.INTERNAL_ERROR: ErrorCode.OVER_CAPACITY,
    CloseCode.SLOW_CONSUMER: ErrorCode.OVER_CAPACITY,
    CloseCode.DISCONNECTED: ErrorCode.UNAUTHORIZED,
    CloseCode.BAD_TOKEN: ErrorCode.UNAUTHORIZED,
    CloseCode.AUTHENTICATION_TIMEOUT: ErrorCode.UNAUTHORIZED,
    CloseCode.REVOKED: ErrorCode.UNAUTHORIZED,
    CloseCode.TOO_MUCH_BAD_INPUT: ErrorCode.OVER_CAPACITY,
    CloseCode.LIMIT: ErrorCode.OVER_CAPACITY,
}
PASSING: Final = frozenset(("internal", "rate_limited", "unavailable"))  # errors after which clients should try again
_STATUSES: Final[Mapping[str, int]] = {"not_authorized": 401, "not_authenticated": 401, "limit_exceeded": 413}


def close_code_of(code: int) -> int:
    """Return the close code that clients of this protocol understand. Codes of WebSocket itself stay."""
    return _CLOSES.get(code, code)


def status_of(code: str) -> int:
    """Return the status of a refused subscription for the code of one of Snorky's errors."""
    return _STATUSES.get(code, 400)
