"""Limiter: how much one connection may send, and how often it may be wrong."""

from math import ceil
from time import monotonic

__all__ = ["Limiter"]

_WINDOW_S = 60.0


class Limiter:
    """Token bucket for messages, and a count of refused ones a minute; one per connection that sends.

    messages_per_s: refill. messages_burst: size of the bucket, in messages. bad_messages_per_minute: refused
    messages that are borne.
    """

    __slots__ = ("_bad", "_bad_max", "_burst", "_per_s", "_refilled_s", "_tokens", "_window_s")

    def __init__(self, messages_per_s: float, messages_burst: int, bad_messages_per_minute: int) -> None:
        self._per_s = messages_per_s
        self._burst = float(messages_burst)
        self._tokens = self._burst
        self._refilled_s = self._window_s = monotonic()
        self._bad = 0
        self._bad_max = bad_messages_per_minute

    def take(self) -> int:
        """Take one message's token. Returns 0, or in how many ms there will be one: then nothing was taken."""
        now_s = monotonic()
        self._tokens = min(self._burst, self._tokens + (now_s - self._refilled_s) * self._per_s)
        self._refilled_s = now_s
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0
        return max(1, ceil((1.0 - self._tokens) / self._per_s * 1000))

    def note_bad(self) -> bool:
        """Count one refused message; True if that was one too many within a minute."""
        now_s = monotonic()
        if now_s - self._window_s > _WINDOW_S:
            self._window_s, self._bad = now_s, 0
        self._bad += 1
        return self._bad > self._bad_max
