"""Line: one connection's calls and their answers. Pure.

Invariants:
- Every call is settled exactly once: answered, timed out, or lost with the connection. None is sent twice.
- After its end a line says nothing.
"""

import json
from collections.abc import Callable
from typing import Any, Protocol

from snorky.errors import SnorkyError, TransportError
from snorky.realtime.clock import Clock
from snorky.strict import encode

__all__ = ["Done", "Io", "Line", "lost"]

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
        self._calls: dict[int, tuple[Done, Callable[[], None]]] = {}

    def __repr__(self) -> str:
        return f"<Line {self.number}>"

    @property
    def is_idle(self) -> bool:
        """True if no answer is waited for."""
        return not self._calls

    def call(self, service: str, command: str, params: dict[str, Any], done: Done, timeout_s: float) -> None:
        """Send a request; `done` is told the answer, or why there is none. Raises ValueError, TypeError."""
        call_id = self._last_id + 1
        message = {"command": command, "params": params, "callId": call_id}
        text = encode({"service": service, "message": message}).decode()
        self._last_id = call_id

        def expire() -> None:
            self._settle(call_id, None, lost(f"No answer to {service}.{command} in time", was_sent=True))

        self._calls[call_id] = (done, self._clock.after(timeout_s, expire))
        self._io.send(self, text)

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
                self.has_answered = True
                self._settle(message.get("callId"), message.get("data"), None)
            case "error":
                self._settle(message.get("callId"), None, SnorkyError.of(message))
            case _:
                return service, message
        return None

    def abandon(self, reason: str) -> None:
        """End the connection for a fault of its own; another one is opened."""
        self._io.close(self, 1000, reason)

    def end(self) -> None:
        """Know that the connection has ended: what has no answer gets none."""
        self.has_ended, self.is_open = True, False
        for call_id in list(self._calls):
            self._settle(call_id, None, lost("The connection ended before the answer", was_sent=True))

    def _settle(self, call_id: Any, data: Any, error: Exception | None) -> None:
        call = self._calls.pop(call_id, None) if isinstance(call_id, int) else None
        if call is not None:
            done, cancel = call
            cancel()
            done(data, error)
