"""Outbox: publishes that wait for a connection or a reply, each under an idempotency key. Pure.

Rules:
- A request is checked and encoded before it enters, so that it cannot fail later when it is sent.
- The outbox is bounded: beyond the bound `put` raises. Each publish has a deadline, at which its caller gets an error:
  none is dropped silently.
- Publishes are sent in order. If the connection ends before the reply, a publish is sent again in its order under its
  key if that is safe; else its caller gets an error with `may_have_happened`. Too large ones are not sent again.
- Publishes that the gateway refuses temporarily (`rate_limited`, `unavailable`) are sent again after the time it names.
"""

from collections.abc import Callable
from typing import Any, Final

from snorky.client.clock import Clock
from snorky.client.errors import SnorkyError, TransportError
from snorky.client.realtime.line import Done, Line, lost
from snorky.client.realtime.refusal import Refusal
from snorky.client.realtime.request import Request

__all__ = ["Outbox"]

IN_FLIGHT_MAX: Final = 64  # a gateway stops reading a connection with more requests in progress
RETRY_AFTER_S: Final = 0.5  # if the gateway gives no time
_PASSING: Final = frozenset({"rate_limited", "unavailable"})


class _Entry:
    def __init__(self, request: Request, done: Done) -> None:
        self.request = request
        self.done = done
        self.line: Line | None = None  # on which it waits for its reply
        self.was_sent = False  # at least once with an unknown outcome
        self.cancel: Callable[[], None] = lambda: None


class Outbox:
    """Sends publishes over the current line. entries_max: of waiting and sent publishes together."""

    def __init__(self, clock: Clock, *, entries_max: int, timeout_s: float, is_resend_safe: bool) -> None:
        self._clock = clock
        self._entries_max = entries_max
        self._timeout_s = timeout_s
        self._is_resend_safe = is_resend_safe
        self._entries: list[_Entry] = []
        self._line: Line | None = None
        self._cancel_pause: Callable[[], None] | None = None
        self.refusal: Refusal | None = None  # why there is no line, if known

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def in_flight(self) -> int:
        """The number of publishes that wait for a reply."""
        return sum(entry.line is not None for entry in self._entries)

    def put(self, request: Request, done: Done) -> None:
        """Queue a publish. Raises TransportError, code `queue_full`: nothing was sent."""
        if len(self._entries) >= self._entries_max:
            text = f"{self._entries_max} publishes wait already"
            raise TransportError(text, "queue_full", may_have_happened=False)
        entry = _Entry(request, done)
        entry.cancel = self._clock.after(self._timeout_s, lambda: self._expire(entry))
        self._entries.append(entry)
        self._flush()

    def use(self, line: Line | None) -> None:
        """Use this line from now on; None = there is none."""
        self._line = line
        self._flush()

    def fail(self, error: Exception) -> None:
        """Fail all publishes."""
        entries, self._entries = self._entries, []
        for entry in entries:
            entry.cancel()
            entry.done(None, lost(str(error), was_sent=True) if entry.was_sent else error)

    def _flush(self) -> None:
        line = self._line
        if line is None or not line.is_open or self._cancel_pause is not None:
            return
        room = IN_FLIGHT_MAX - self.in_flight
        for entry in [each for each in self._entries if each.line is None][: max(0, room)]:
            self._send(entry, line)

    def _send(self, entry: _Entry, line: Line) -> None:
        entry.line = line

        def done(data: Any, error: Exception | None) -> None:
            entry.line = None
            self._answer(entry, data, error)

        line.call(entry.request, done, self._timeout_s)

    def _answer(self, entry: _Entry, data: Any, error: Exception | None) -> None:
        if entry not in self._entries:
            return  # its caller got an error already
        if isinstance(error, SnorkyError):
            if error.code in _PASSING and (error.code == "rate_limited" or self._is_resend_safe):
                entry.was_sent |= error.code == "unavailable"
                self._pause(RETRY_AFTER_S if error.retry_after_ms is None else error.retry_after_ms / 1000)
                return
        elif error is not None and getattr(error, "code", None) != "too_large":
            entry.was_sent = True
            if self._is_resend_safe:
                return  # it will be sent on the next line
        self._entries.remove(entry)
        entry.cancel()
        entry.done(data, error)
        self._flush()

    def _pause(self, delay_s: float) -> None:
        if self._cancel_pause is None:
            self._cancel_pause = self._clock.after(delay_s, self._resume)

    def _resume(self) -> None:
        self._cancel_pause = None
        self._flush()

    def _expire(self, entry: _Entry) -> None:
        if entry in self._entries:
            self._entries.remove(entry)
            was_sent = entry.was_sent or entry.line is not None
            text = "No reply to the publish in time"
            refusal = None if was_sent else self.refusal
            entry.done(None, lost(text, was_sent=was_sent) if refusal is None else refusal.error(text))
            self._flush()
