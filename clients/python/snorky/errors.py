"""What can go wrong with a call.

    SnorkyError       a service was reached and refused; `code` is stable, `retry_after_ms` is set where waiting helps
    TransportError    no such answer came (a RuntimeError, as in Snorky 0.1); tells whether the call may have been done
      ConnectionEnded   the gateway closed for good: terminal close codes (4500 to 4999), or the client was closed
      PublishError      a Publisher could not publish, or does not know whether it has; carries the idempotency key
        PublishManyError  the same of some of many
        HistoryNotKept    require_history was given; it was published, and the channel's history does not have it

TransportError.code is one of
    unreachable      no connection; nothing was sent
    no_reply         sent, and no answer came, or not in time
    unauthorized     401: wrong or missing key
    invalid_reply    the answer is not one of a gateway's
    http_STATUS      another status without an error of the gateway; with one, its code (unknown_service, ...)
and of PublishError besides
    no_function      Redis does not have the function that nodes load, or not the rules that they write for it
    unavailable      Redis cannot store it now: out of memory, read-only, loading, ...
    refused          Redis or the function refuses it for good
    not_kept         of HistoryNotKept
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snorky.publication import Receipt

__all__ = ["ConnectionEnded", "HistoryNotKept", "PublishError", "PublishManyError", "SnorkyError", "TransportError"]


class SnorkyError(Exception):
    """A service refused a call. str(error): its text. code: snake_case, "refused" of a server that gives none."""

    def __init__(self, text: str, code: str = "refused", *, retry_after_ms: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.retry_after_ms = retry_after_ms

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> "SnorkyError":
        """Read an error message of the protocol."""
        text, code, retry_after_ms = message.get("message"), message.get("code"), message.get("retryAfterMs")
        return cls(
            text if isinstance(text, str) else "refused",
            code if isinstance(code, str) else "refused",
            retry_after_ms=retry_after_ms if type(retry_after_ms) is int and retry_after_ms >= 0 else None,
        )

    def __reduce__(self) -> tuple[object, ...]:  # job queues pickle the errors of their jobs
        return type(self)._make, (str(self), self.code, self.retry_after_ms)

    @classmethod
    def _make(cls, text: str, code: str, retry_after_ms: int | None) -> "SnorkyError":
        return cls(text, code, retry_after_ms=retry_after_ms)


class TransportError(RuntimeError):
    """No answer of a service came. may_have_happened: False = the gateway has surely not acted on the request.

    status: the HTTP status, None if there was none. retry_after_ms: when to come back, where the gateway said so.
    """

    def __init__(
        self,
        text: str,
        code: str,
        *,
        may_have_happened: bool,
        status: int | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(text)
        self.code = code
        self.may_have_happened = may_have_happened
        self.status = status
        self.retry_after_ms = retry_after_ms

    def __reduce__(self) -> tuple[object, ...]:
        return type(self)._make, (str(self), self.code, self.may_have_happened, self.status, self.retry_after_ms)

    @classmethod
    def _make(
        cls, text: str, code: str, may_have_happened: bool, status: int | None, retry_after_ms: int | None
    ) -> "TransportError":
        return cls(text, code, may_have_happened=may_have_happened, status=status, retry_after_ms=retry_after_ms)


class ConnectionEnded(TransportError):
    """A realtime client has ended. close_code: why: of the protocol, 1000 = it was closed by its own program.

    1006 = the first connection cannot be made, and trying again would not help: `reason` tells why; `status`
    is that of the answer, if it was one in HTTP.
    """

    def __init__(self, close_code: int, reason: str = "", status: int | None = None) -> None:
        text = f"The connection has ended for good: {close_code} {reason}".rstrip()
        if close_code == 1006:
            text = f"The connection cannot be made: {reason}"
        super().__init__(text, "closed", may_have_happened=False, status=status)
        self.close_code = close_code
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.close_code, self.reason, self.status)


class PublishError(TransportError):
    """A publication was not taken, or nobody knows. Publishing again under `key`, within its window, is safe."""

    def __init__(self, text: str, code: str, *, may_have_happened: bool, key: str) -> None:
        super().__init__(text, code, may_have_happened=may_have_happened)
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        return _publish_error, (type(self), str(self), self.code, self.may_have_happened, self.key)


class HistoryNotKept(PublishError):
    """A publication with require_history was published and not kept: clients that were away miss it.

    No node's rule keeps the channel, or Redis has another function. Under the same key Redis answers alike for 300 s.
    """


class PublishManyError(PublishError):
    """Some of many were not taken. receipts: of all, None where there is none. errors: why, by index."""

    def __init__(self, receipts: "list[Receipt | None]", errors: dict[int, PublishError]) -> None:
        first = errors[min(errors)]
        super().__init__(
            f"{len(errors)} of {len(receipts)} were not surely published; the first: {first}",
            first.code,
            may_have_happened=any(error.may_have_happened for error in errors.values()),
            key=first.key,
        )
        self.receipts = receipts
        self.errors = errors

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.receipts, self.errors)


def _publish_error(kind: type[PublishError], text: str, code: str, may_have_happened: bool, key: str) -> PublishError:
    return kind(text, code, may_have_happened=may_have_happened, key=key)
