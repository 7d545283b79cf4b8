"""The errors of calls and publications.

    SnorkyError       the service refused the call; `code` is stable, `retry_after_ms` is set if waiting helps
    TransportError    no reply of the service (a RuntimeError, as in Snorky 0.1); `may_have_happened` says whether the
                      call may have been executed
      ConnectionEnded   the client will not reconnect: terminal close code (4500 to 4999), or it was closed
      PublishError      a Publisher did not publish, or does not know whether it did; has the idempotency key
        PublishManyError  the same for some messages of `publish_many`
        HistoryNotKept    with require_history: published, but the channel keeps no history

TransportError.code is one of
    unreachable      no connection; nothing was sent
    no_reply         sent, but no reply came, or not in time
    unauthorized     401: wrong or missing key
    invalid_reply    the reply is not one of a gateway
    http_STATUS      another HTTP status; if the response has an error of the gateway, its code (unknown_service, ...)
and for PublishError also
    no_function      Redis does not have the function that nodes load, or the channel rules that they write for it
    unavailable      Redis cannot store it now: out of memory, read-only, loading, ...
    refused          Redis or the function refuses it permanently
    not_kept         of HistoryNotKept
"""

from collections.abc import Mapping
from typing import Any

from snorky.client.receipt import Receipt

__all__ = ["ConnectionEnded", "HistoryNotKept", "PublishError", "PublishManyError", "SnorkyError", "TransportError"]


class SnorkyError(Exception):
    """A service refused a call. str(error): its text. code: in snake_case; "refused" if the server gives none."""

    def __init__(self, text: str, code: str = "refused", *, retry_after_ms: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.retry_after_ms = retry_after_ms

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> "SnorkyError":
        """Create the error from an error message of the protocol."""
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
    """There was no reply of the service. may_have_happened: False = the gateway certainly did not execute the request.

    status: the HTTP status; None if there was no response. retry_after_ms: when to try again, if the gateway said so.
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
    """A realtime client has ended. close_code: the protocol's; 1000 = closed by its own program.

    1006 = the first connection failed and trying again cannot help. reason: why. status: the HTTP status, if there
    was a response.
    """

    def __init__(self, close_code: int, reason: str = "", status: int | None = None) -> None:
        text = f"The connection has ended permanently: {close_code} {reason}".rstrip()
        if close_code == 1006:
            text = f"The connection cannot be made: {reason}"
        super().__init__(text, "closed", may_have_happened=False, status=status)
        self.close_code = close_code
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.close_code, self.reason, self.status)


class PublishError(TransportError):
    """A publication failed, or its outcome is unknown. Publishing again under `key` within 300 s is safe."""

    def __init__(self, text: str, code: str, *, may_have_happened: bool, key: str) -> None:
        super().__init__(text, code, may_have_happened=may_have_happened)
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        return _publish_error, (type(self), str(self), self.code, self.may_have_happened, self.key)


class HistoryNotKept(PublishError):
    """A publication with require_history was published, but not stored: disconnected clients miss it.

    No node's rule gives the channel a history, or Redis has another version of the function. For 300 s, publishing
    again under the same key gives the same result.
    """


class PublishManyError(PublishError):
    """Some messages of `publish_many` failed. receipts: of all messages, None for failed ones. errors: by index."""

    def __init__(self, receipts: list[Receipt | None], errors: dict[int, PublishError]) -> None:
        first = errors[min(errors)]
        super().__init__(
            f"{len(errors)} of {len(receipts)} are not confirmed as published; the first: {first}",
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
