"""Every error that the gateway raises on purpose, and the codes that peers receive.

    SnorkyError
    ├── ConfigurationError        settings are wrong; the text names the setting and the remedy
    ├── InvalidInput              a peer sent something that the protocol does not allow
    │   ├── InvalidMessage        not strict JSON / MessagePack, or beyond the limits of a message
    │   ├── InvalidEnvelope       a value, but not {"service", "message"}
    │   ├── InvalidChannel        a channel that is too long or has no canonical form
    │   └── ProtocolFault         WebSocket framing; carries the close code
    ├── UnknownService            no service of that name in this registry
    ├── Refused                   the request is not allowed; has a stable `code`
    │   ├── AlreadySubscribed, NotSubscribed
    │   ├── NotAuthenticated      the connection has no identity
    │   ├── HookRefused           the operator's backend refuses it
    │   ├── ServiceNotPermitted   the key of a backend may not call this service
    │   ├── LimitExceeded         a configured limit is reached
    │   │   └── ReplyTooLarge     the reply is larger than one client's outbox
    │   └── ConnectionClosed      the connection closed in the meantime
    ├── InvalidToken              the token is not accepted; carries the close code
    │   └── Revoked               the token was valid and has been revoked
    ├── HookUnavailable           the operator's backend gave no usable answer; a retry may help
    └── BrokerUnavailable         Redis did not confirm in time; a retry may help

A peer receives only `code` and `str(error)`; both are safe to show.
"""

from enum import IntEnum

__all__ = [
    "AlreadySubscribed",
    "BrokerUnavailable",
    "CloseCode",
    "ConfigurationError",
    "ConnectionClosed",
    "HookRefused",
    "HookUnavailable",
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
    "ServiceNotPermitted",
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
    """Base class. `code` is stable and snake_case; `retry_after_ms` is set if a retry may help."""

    code = "internal"
    retry_after_ms: int | None = None


class ConfigurationError(SnorkyError):
    """Settings are wrong. Raised only during startup; the text names the setting and the remedy."""

    code = "configuration"


class InvalidInput(SnorkyError):
    """A peer sent something that is not allowed. The peer's fault, never the gateway's."""

    code = "invalid"


class InvalidMessage(InvalidInput):
    """Bytes are not one strict JSON or MessagePack value within depth and size. Raised by `codec`."""

    code = "invalid_message"


class InvalidEnvelope(InvalidInput):
    """A value is not {"service": NAME, "message": ANY}. `service` is set if the name was readable."""

    code = "invalid_envelope"

    def __init__(self, text: str, service: str | None = None) -> None:
        super().__init__(text)
        self.service = service


class InvalidChannel(InvalidInput):
    """A channel is longer than 255 bytes in canonical form, or has none (RFC 8785)."""

    code = "invalid_channel"


class ProtocolFault(InvalidInput):
    """A WebSocket peer violated RFC 6455; the connection is closed with `close_code`."""

    code = "protocol_fault"

    def __init__(self, close_code: CloseCode, text: str) -> None:
        super().__init__(text)
        self.close_code = close_code


class UnknownService(SnorkyError):
    """No service of this name is registered for this endpoint."""

    code = "unknown_service"

    def __init__(self, service: str) -> None:
        super().__init__("Unknown service")
        self.service = service


class Refused(SnorkyError):
    """A request was valid but is not allowed; the text is sent to the peer."""

    code = "refused"


class AlreadySubscribed(Refused):
    """The connection is already subscribed to this channel, or is subscribing to it."""

    code = "already_subscribed"

    def __init__(self) -> None:
        super().__init__("Already subscribed")


class NotSubscribed(Refused):
    """The connection is not subscribed to this channel."""

    code = "not_subscribed"

    def __init__(self) -> None:
        super().__init__("Not subscribed")


class NotAuthenticated(Refused):
    """The connection has no identity, and the request needs one."""

    code = "not_authenticated"

    def __init__(self) -> None:
        super().__init__("Not authenticated")


class HookRefused(Refused):
    """The operator's backend, asked by an HTTP hook, refuses this operation."""

    code = "not_authorized"

    def __init__(self) -> None:
        super().__init__("Not authorized")


class ServiceNotPermitted(Refused):
    """The key of a backend may not call this service, whether it exists or not."""

    code = "not_authorized"

    def __init__(self, service: str) -> None:
        super().__init__("Not authorized")
        self.service = service


class LimitExceeded(Refused):
    """A configured limit is reached. `limit`: the setting's name, for metrics and logs.

    The peer receives `code` (default "limit_exceeded") and `retry_after_ms`, the time until it may retry.
    """

    code = "limit_exceeded"

    def __init__(self, limit: str, text: str, *, code: str | None = None, retry_after_ms: int | None = None) -> None:
        super().__init__(text)
        self.limit = limit
        if code is not None:
            self.code = code
        self.retry_after_ms = retry_after_ms


class ReplyTooLarge(LimitExceeded):
    """A reply is larger than one client's outbox."""

    code = "too_large"

    def __init__(self, max_bytes: int) -> None:
        super().__init__("outbox_max_bytes", f"The answer is larger than {max_bytes} bytes: ask for less")


class ConnectionClosed(Refused):
    """The connection closed while the request was being processed; a reply cannot be sent."""

    code = "connection_closed"

    def __init__(self) -> None:
        super().__init__("Connection closed")


class InvalidToken(SnorkyError):
    """A token is not accepted; the connection is closed with `close_code`. reason: a literal, for metrics only."""

    code = "invalid_token"

    def __init__(
        self, reason: str, text: str = "Invalid token", *, close_code: CloseCode = CloseCode.BAD_TOKEN
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.close_code = close_code


class Revoked(InvalidToken):
    """This token, or all tokens of its identity issued before some time, were revoked."""

    code = "revoked"

    def __init__(self) -> None:
        super().__init__("revoked", "Revoked", close_code=CloseCode.REVOKED)


class HookUnavailable(SnorkyError):
    """The operator's backend gave no usable answer, or too many questions wait for it. reason: a literal."""

    code = "unavailable"
    retry_after_ms = 1000

    def __init__(self, reason: str) -> None:
        super().__init__("Temporarily unavailable")
        self.reason = reason  # "hook_failed" or "hook_busy"


class BrokerUnavailable(SnorkyError):
    """Redis did not execute or confirm a command before the deadline.

    After a publish the outcome is unknown: the message may have been delivered or not. is_undone: it was surely not
    delivered or stored.
    """

    code = "unavailable"
    retry_after_ms = 1000

    def __init__(self, what: str = "", *, is_undone: bool = False) -> None:
        super().__init__("Temporarily unavailable")
        self.what = what  # for logs only
        self.is_undone = is_undone
