"""Every error the gateway raises on purpose, and the codes a peer gets to see.

    SnorkyError
    ├── ConfigurationError        settings are wrong; the text says which and what to write instead
    ├── InvalidInput              bytes of a peer are not what the protocol allows
    │   ├── InvalidMessage        not strict JSON / MessagePack, or beyond the limits of a message
    │   ├── InvalidEnvelope       a value, but no {"service", "message"}
    │   ├── InvalidChannel        a channel that is too long or has no canonical form
    │   └── ProtocolFault         WebSocket framing; carries the close code to end with
    ├── UnknownService            nobody of that name in this registry
    ├── Refused                   a service asked for what may not be; has a stable `code`
    │   ├── AlreadySubscribed, NotSubscribed
    │   ├── NotAuthenticated      it has not said who it is
    │   ├── LimitExceeded         a configured limit is reached
    │   │   └── ReplyTooLarge     what was asked for is more than may be written to one client
    │   └── ConnectionClosed      the connection went away meanwhile
    ├── InvalidToken              whoever presented it is not who it says; carries the close code to end with
    │   └── Revoked               it was good once
    └── BrokerUnavailable         Redis did not confirm in time; trying again may help

A peer never sees more of an error than `code` and `str(error)`; both are safe to show.
"""

from enum import IntEnum

__all__ = [
    "AlreadySubscribed",
    "BrokerUnavailable",
    "CloseCode",
    "ConfigurationError",
    "ConnectionClosed",
    "InvalidChannel",
    "InvalidEnvelope",
    "InvalidInput",
    "InvalidMessage",
    "InvalidToken",
    "LimitExceeded",
    "NotAuthenticated",
    "NotSubscribed",
    "ProtocolFault",
    "Refused",
    "ReplyTooLarge",
    "Revoked",
    "SnorkyError",
    "UnknownService",
]


class CloseCode(IntEnum):
    """WebSocket close codes in use: RFC 6455 7.4.1, then our own (4000-4499 reconnect, 4500-4999 do not)."""

    OK = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005  # never on the wire: the peer's close frame was empty
    ABNORMAL = 1006  # never on the wire: the connection ended without a close frame
    INVALID_TEXT = 1007
    POLICY = 1008
    TOO_LARGE = 1009
    INTERNAL_ERROR = 1011
    RECONNECT = 4000
    SLOW_CONSUMER = 4008
    RESYNC = 4010
    DISCONNECTED = 4500
    BAD_TOKEN = 4501
    AUTHENTICATION_TIMEOUT = 4502
    REVOKED = 4503
    TOO_MUCH_BAD_INPUT = 4509
    LIMIT = 4510


class SnorkyError(Exception):
    """Root of the tree. `code` is stable and snake_case; `retry_after_ms` is set where waiting helps."""

    code = "internal"
    retry_after_ms: int | None = None


class ConfigurationError(SnorkyError):
    """Settings are wrong. Raised while starting, never later; the text names the setting and the way out."""

    code = "configuration"


class InvalidInput(SnorkyError):
    """What a peer sent is not allowed. The peer's fault, never the gateway's."""

    code = "invalid"


class InvalidMessage(InvalidInput):
    """Bytes are not one strict JSON or MessagePack value within depth and size. Raised by `codec`."""

    code = "invalid_message"


class InvalidEnvelope(InvalidInput):
    """A value is not {"service": NAME, "message": ANY}. `service` is set if it could be told."""

    code = "invalid_envelope"

    def __init__(self, text: str, service: str | None = None) -> None:
        super().__init__(text)
        self.service = service


class InvalidChannel(InvalidInput):
    """A channel is longer than 255 bytes in canonical form, or has none (RFC 8785)."""

    code = "invalid_channel"


class ProtocolFault(InvalidInput):
    """A WebSocket peer broke RFC 6455; the connection ends with `close_code`."""

    code = "protocol_fault"

    def __init__(self, close_code: CloseCode, text: str) -> None:
        super().__init__(text)
        self.close_code = close_code


class UnknownService(SnorkyError):
    """No service of this name is registered behind the endpoint."""

    code = "unknown_service"

    def __init__(self, service: str) -> None:
        super().__init__("Unknown service")
        self.service = service


class Refused(SnorkyError):
    """A request was understood and may not be done; the text goes to the peer as it is."""

    code = "refused"


class AlreadySubscribed(Refused):
    """The connection subscribes to this channel already, or is about to."""

    code = "already_subscribed"

    def __init__(self) -> None:
        super().__init__("Already subscribed")


class NotSubscribed(Refused):
    """The connection does not subscribe to this channel."""

    code = "not_subscribed"

    def __init__(self) -> None:
        super().__init__("Not subscribed")


class NotAuthenticated(Refused):
    """The connection has no identity, and what it asked for needs one."""

    code = "not_authenticated"

    def __init__(self) -> None:
        super().__init__("Not authenticated")


class LimitExceeded(Refused):
    """A limit of the settings is reached; `limit` is its name there, for metrics and logs.

    `code` (default "limit_exceeded") is what the peer sees, `retry_after_ms` when it may try again.
    """

    code = "limit_exceeded"

    def __init__(self, limit: str, text: str, *, code: str | None = None, retry_after_ms: int | None = None) -> None:
        super().__init__(text)
        self.limit = limit
        if code is not None:
            self.code = code
        self.retry_after_ms = retry_after_ms


class ReplyTooLarge(LimitExceeded):
    """A reply is larger than what may wait for one client."""

    code = "too_large"

    def __init__(self, max_bytes: int) -> None:
        super().__init__("outbox_max_bytes", f"The answer is larger than {max_bytes} bytes: ask for less")


class ConnectionClosed(Refused):
    """The connection closed while the request was under way; nobody is left to answer."""

    code = "connection_closed"

    def __init__(self) -> None:
        super().__init__("Connection closed")


class InvalidToken(SnorkyError):
    """A token is not accepted; the connection ends with `close_code`. reason: a literal, for metrics only."""

    code = "invalid_token"

    def __init__(
        self, reason: str, text: str = "Invalid token", *, close_code: CloseCode = CloseCode.BAD_TOKEN
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.close_code = close_code


class Revoked(InvalidToken):
    """A token, or all of its identity's until some moment, were revoked."""

    code = "revoked"

    def __init__(self) -> None:
        super().__init__("revoked", "Revoked", close_code=CloseCode.REVOKED)


class BrokerUnavailable(SnorkyError):
    """Redis did not do or confirm what was asked before the deadline.

    After a publish the outcome is unknown: it may have been delivered, it may not. is_undone: surely nothing was done.
    """

    code = "unavailable"
    retry_after_ms = 1000

    def __init__(self, what: str = "", *, is_undone: bool = False) -> None:
        super().__init__("Temporarily unavailable")
        self.what = what  # for logs only
        self.is_undone = is_undone
