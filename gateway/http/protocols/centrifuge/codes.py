"""Codes of the Centrifuge protocol, for Snorky's errors, close codes and ended subscriptions. Pure.

Clients connect again after close codes below 3500, from 4000 to 4499, and from 5000 on. They subscribe again after
`unsubscribe` codes from 2500 on.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final

from snorky.gateway.errors import CloseCode
from snorky.gateway.protocol.codec import Json

__all__ = ["Disconnect", "ErrorCode", "disconnect_of", "error", "error_of", "unsubscribe_of"]


class ErrorCode(IntEnum):
    """Codes of errors in replies."""

    INTERNAL = 100
    UNAUTHORIZED = 101
    PERMISSION_DENIED = 103
    METHOD_NOT_FOUND = 104
    ALREADY_SUBSCRIBED = 105
    LIMIT_EXCEEDED = 106
    BAD_REQUEST = 107
    NOT_AVAILABLE = 108
    TOKEN_EXPIRED = 109
    TOO_MANY_REQUESTS = 111
    UNRECOVERABLE_POSITION = 112
    OF_APPLICATION = 400


class Disconnect(IntEnum):
    """Close codes."""

    SHUTDOWN = 3001
    SERVER_ERROR = 3004
    EXPIRED = 3005
    SLOW = 3008
    INSUFFICIENT_STATE = 3010
    FORCE_RECONNECT = 3011
    INVALID_TOKEN = 3500
    BAD_REQUEST = 3501
    STALE = 3502
    FORCE_DISCONNECT = 3503
    LIMIT = 3504
    NOT_AVAILABLE = 3508
    TOO_MANY_ERRORS = 3509


_TEMPORARY: Final = frozenset((ErrorCode.INTERNAL, ErrorCode.TOO_MANY_REQUESTS))
_MESSAGES: Final[Mapping[ErrorCode, str]] = {
    ErrorCode.INTERNAL: "internal server error",
    ErrorCode.UNAUTHORIZED: "unauthorized",
    ErrorCode.PERMISSION_DENIED: "permission denied",
    ErrorCode.METHOD_NOT_FOUND: "method not found",
    ErrorCode.ALREADY_SUBSCRIBED: "already subscribed",
    ErrorCode.LIMIT_EXCEEDED: "limit exceeded",
    ErrorCode.BAD_REQUEST: "bad request",
    ErrorCode.NOT_AVAILABLE: "not available",
    ErrorCode.TOKEN_EXPIRED: "token expired",
    ErrorCode.TOO_MANY_REQUESTS: "too many requests",
    ErrorCode.UNRECOVERABLE_POSITION: "unrecoverable position",
}
_ERRORS: Final[Mapping[str, ErrorCode]] = {
    "already_subscribed": ErrorCode.ALREADY_SUBSCRIBED,
    "connection_closed": ErrorCode.INTERNAL,
    "internal": ErrorCode.INTERNAL,
    "invalid_channel": ErrorCode.BAD_REQUEST,
    "invalid_message": ErrorCode.BAD_REQUEST,
    "invalid_params": ErrorCode.BAD_REQUEST,
    "invalid_token": ErrorCode.PERMISSION_DENIED,
    "limit_exceeded": ErrorCode.LIMIT_EXCEEDED,
    "not_authenticated": ErrorCode.UNAUTHORIZED,
    "not_authorized": ErrorCode.PERMISSION_DENIED,
    "not_configured": ErrorCode.NOT_AVAILABLE,
    "not_subscribed": ErrorCode.PERMISSION_DENIED,
    "position_lost": ErrorCode.UNRECOVERABLE_POSITION,
    "rate_limited": ErrorCode.TOO_MANY_REQUESTS,
    "revoked": ErrorCode.PERMISSION_DENIED,
    "token_expired": ErrorCode.TOKEN_EXPIRED,
    "too_large": ErrorCode.LIMIT_EXCEEDED,
    "unavailable": ErrorCode.INTERNAL,
    "unknown_command": ErrorCode.METHOD_NOT_FOUND,
    "unknown_service": ErrorCode.METHOD_NOT_FOUND,
}
_DISCONNECTS: Final[Mapping[int, Disconnect]] = {
    CloseCode.GOING_AWAY: Disconnect.SHUTDOWN,
    CloseCode.INTERNAL_ERROR: Disconnect.SERVER_ERROR,
    CloseCode.POLICY: Disconnect.BAD_REQUEST,
    CloseCode.RECONNECT: Disconnect.FORCE_RECONNECT,
    CloseCode.SLOW_CONSUMER: Disconnect.SLOW,
    CloseCode.RESYNC: Disconnect.INSUFFICIENT_STATE,
    CloseCode.DISCONNECTED: Disconnect.FORCE_DISCONNECT,
    CloseCode.BAD_TOKEN: Disconnect.INVALID_TOKEN,
    CloseCode.AUTHENTICATION_TIMEOUT: Disconnect.STALE,
    CloseCode.REVOKED: Disconnect.FORCE_DISCONNECT,
    CloseCode.TOO_MUCH_BAD_INPUT: Disconnect.TOO_MANY_ERRORS,
    CloseCode.LIMIT: Disconnect.LIMIT,
}
_UNSUBSCRIBES: Final[Mapping[str, int]] = {"gap": 2500, "expired": 2501}
_FINAL: Final = 2000


def error_of(code: str, text: str = "") -> dict[str, Json]:
    """Build the error of a reply for the code of one of Snorky's errors. text: of an application's own error."""
    return error(_ERRORS[code]) if code in _ERRORS else {"code": ErrorCode.OF_APPLICATION, "message": text or code}


def error(code: ErrorCode) -> dict[str, Json]:
    """Build the error of a reply."""
    found: dict[str, Json] = {"code": code, "message": _MESSAGES[code]}
    return found | {"temporary": True} if code in _TEMPORARY else found


def disconnect_of(code: int, reason: str) -> int:
    """Return the close code that clients of this protocol understand. Codes of WebSocket itself stay."""
    if code == CloseCode.BAD_TOKEN and reason == "Token expired":
        return Disconnect.EXPIRED
    return _DISCONNECTS.get(code, code)


def unsubscribe_of(message: Mapping[str, Any]) -> dict[str, Json]:
    """Build the push `unsubscribe` for an ended subscription. message: Snorky's notification `unsubscribed`."""
    return {"code": _UNSUBSCRIBES.get(message["code"], _FINAL), "reason": message["reason"]}
