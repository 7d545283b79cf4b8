"""Line: one connection, with its calls and their replies. Pure.

Invariants:
- Every call settles exactly once: with a reply, a timeout, or the end of the connection. No call is sent twice.
- Only a reply from the service that was called settles a call. Call IDs begin with 64 random bits that only the gateway
  learns, so a message from another client cannot pass for a reply.
- A line makes no callbacks after its end.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from snorky.client.clock import Clock
from snorky.client.errors import SnorkyError, TransportError
from snorky.client.realtime.request import Request

__all__ = ["TOO_LARGE", "Done", "Io", "Line", "lost"]

TOO_LARGE: Final = 1009  # a node's close code after a message above its message_max_bytes

Done = Callable[[Any, Exception | None], None]  # data, or the error


class Io(Protocol):
    """The I/O that the session uses. For each line it calls the session's `on_open` at most once, `on_end` once."""

    def dial(self, line: "Line", *, is_token_new: bool) -> None:
        """Open a connection for a line. is_token_new: get a new token; the previous one was refused."""

    def send(self, line: "Line", text: str) -> None:
        """Send one message; never waits."""

    def close(self, line: "Line", code: int, reason: str) -> None:
        """Close the connection; `on_end` follows as for any other end."""


def lost(text: str, *, was_sent: bool) -> TransportError:
    """Return the error of a request without a reply."""
    return TransportError(text, "no_reply" if was_sent else "unreachable", may_have_happened=was_sent)


@dataclass(slots=True)
class _Call:
    """A call that waits for its reply."""

    request: Request
    done: Done
    cancel: Callable[[], None]


class Line:
    """One connection, from its handshake to its end."""

    def __init__(self, number: int, io: Io, clock: Clock) -> None:
        self.number = number
        self.is_open = False
        self.has_ended = False
        self.has_answered = False  # a response arrived: the server serves this connection
        self.is_leaving = False  # another line is replacing it
        self.grace_s: float | None = None  # the grace period, once the node announced that it leaves
        self.opened_at_s = 0.0
        self._io = io
        self._clock = clock
        self._last_id = 0
        self._prefix = secrets.token_hex(8)
        self._calls: dict[str, _Call] = {}

    def __repr__(self) -> str:
        return f"<Line {self.number}>"

    @property
    def is_idle(self) -> bool:
        """True if no call waits for a reply."""
        return not self._calls

    def call(self, request: Request, done: Done, timeout_s: float) -> None:
        """Send a request; `done` is called with the reply's data or the error."""
        self._last_id += 1
        call_id = f"{self._prefix}.{self._last_id}"

        def expire() -> None:
            error = lost(f"No answer to {request.service}.{request.command} in time", was_sent=True)
            self._settle(call_id, None, error)

        self._calls[call_id] = _Call(request, done, self._clock.after(timeout_s, expire))
        self._io.send(self, request.text(call_id))

    def receive(self, text: str | bytes) -> tuple[str, dict[str, Any]] | None:
        """Process a received message; return its service and itself if it is a notification, else None."""
        try:
            envelope = json.loads(text)
        except (ValueError, RecursionError):
            return None  # not a gateway's message; the connection stays open
        service = envelope.get("service") if isinstance(envelope, dict) else None
        message = envelope.get("message") if isinstance(envelope, dict) else None
        if not isinstance(service, str) or not isinstance(message, dict):
            return None
        match message.get("type"):
            case "response":
                if (call_id := self._asked(service, message)) is not None:
                    self.has_answered = True
                    self._settle(call_id, message.get("data"), None)
            case "error":
                if (call_id := self._asked(service, message)) is not None:
                    self._settle(call_id, None, SnorkyError.of(message))
            case _:
                return service, message
        return None

    def abandon(self, reason: str) -> None:
        """Close the connection because its state is uncertain; the session opens another one."""
        self._io.close(self, 1000, reason)

    def end(self, code: int = 1006) -> None:
        """Settle all calls without a reply. code: the close code.

        After 1009 the largest of them fails with `too_large`: sent again, it would end the next connection.
        """
        self.has_ended, self.is_open = True, False
        if code == TOO_LARGE and self._calls:
            call_id = max(self._calls, key=lambda each: self._calls[each].request.size_bytes)
            text = f"The gateway does not accept {self._calls[call_id].request.size_bytes} bytes at once: send less"
            self._settle(call_id, None, TransportError(text, "too_large", may_have_happened=False))
        for call_id in list(self._calls):
            self._settle(call_id, None, lost("The connection ended before the answer", was_sent=True))

    def _asked(self, service: str, message: dict[str, Any]) -> str | None:
        """Return the ID of the call that a reply belongs to."""
        call_id = message.get("callId")
        call = self._calls.get(call_id) if isinstance(call_id, str) else None
        return call_id if call is not None and call.request.service == service else None

    def _settle(self, call_id: str, data: Any, error: Exception | None) -> None:
        call = self._calls.pop(call_id, None)
        if call is not None:
            call.cancel()
            call.done(data, error)
