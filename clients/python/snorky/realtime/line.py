"""Line: one connection's calls and their answers. Pure.

Invariants:
- Every call is settled exactly once: answered, timed out, or lost with the connection. None is sent twice.
- Only a reply under the name of the service that was called settles a call. Call ids begin with 64 random bits that
  only the gateway learns, so that nothing that other clients send can look like a reply.
- After its end a line says nothing.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from snorky.errors import SnorkyError, TransportError
from snorky.realtime.clock import Clock
from snorky.realtime.request import Request

__all__ = ["TOO_LARGE", "Done", "Io", "Line", "lost"]

TOO_LARGE: Final = 1009  # how a node closes a connection that sent more than its message_max_bytes at once

Done = Callable[[Any, Exception | None], None]  # data, or why there is none


class Io(Protocol):
    """What the session asks of the world. Each dialled line is told `on_open` at most once, and `on_end` once."""

    def dial(self, line: "Line", *, is_token_new: bool) -> None:
        """Open a connection for a line. is_token_new: the token that was used before is no good."""

    def send(self, line: "Line", text: str) -> None:
        """Send one message; never waits."""

    def close(self, line: "Line", code: int, reason: str) -> None:
        """Close the connection; its end is told as any other."""


def lost(text: str, *, was_sent: bool) -> TransportError:
    """Make the error of what has no answer."""
    return TransportError(text, "no_reply" if was_sent else "unreachable", may_have_happened=was_sent)


@dataclass(slots=True)
class _Call:
    """One that waits for its answer."""

    request: Request
    done: Done
    cancel: Callable[[], None]


class Line:
    """One connection, from dialling to its end."""

    def __init__(self, number: int, io: Io, clock: Clock) -> None:
        self.number = number
        self.is_open = False
        self.has_ended = False
        self.has_answered = False  # a response came: the server has taken us on
        self.is_leaving = False  # another line takes its place
        self.grace_s: float | None = None  # set when the node said that it goes away
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
        """True if no answer is waited for."""
        return not self._calls

    def call(self, request: Request, done: Done, timeout_s: float) -> None:
        """Send a request; `done` receives the answer or the error."""
        self._last_id += 1
        call_id = f"{self._prefix}.{self._last_id}"

        def expire() -> None:
            error = lost(f"No answer to {request.service}.{request.command} in time", was_sent=True)
            self._settle(call_id, None, error)

        self._calls[call_id] = _Call(request, done, self._clock.after(timeout_s, expire))
        self._io.send(self, request.text(call_id))

    def hear(self, text: str | bytes) -> tuple[str, dict[str, Any]] | None:
        """Take one message; give the service and the notification if it is one."""
        try:
            envelope = json.loads(text)
        except (ValueError, RecursionError):
            return None  # not a gateway's; the connection goes on
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
        """End the connection for a fault of its own; another one is opened."""
        self._io.close(self, 1000, reason)

    def end(self, code: int = 1006) -> None:
        """End all calls that have no answer. code: with which the connection was closed.

        After 1009 the largest of them was too large and fails with `too_large`: sent again, it would end the next
        connection.
        """
        self.has_ended, self.is_open = True, False
        if code == TOO_LARGE and self._calls:
            call_id = max(self._calls, key=lambda each: self._calls[each].request.size_bytes)
            text = f"The gateway does not take {self._calls[call_id].request.size_bytes} bytes at once: send less"
            self._settle(call_id, None, TransportError(text, "too_large", may_have_happened=False))
        for call_id in list(self._calls):
            self._settle(call_id, None, lost("The connection ended before the answer", was_sent=True))

    def _asked(self, service: str, message: dict[str, Any]) -> str | None:
        """Find the call that a reply belongs to."""
        call_id = message.get("callId")
        call = self._calls.get(call_id) if isinstance(call_id, str) else None
        return call_id if call is not None and call.request.service == service else None

    def _settle(self, call_id: str, data: Any, error: Exception | None) -> None:
        call = self._calls.pop(call_id, None)
        if call is not None:
            call.cancel()
            call.done(data, error)
