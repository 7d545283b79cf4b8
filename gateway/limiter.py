"""Limiter: how much one connection may send, and how often it may be wrong."""

from math import ceil
from time import monotonic
from typing import Final

__all__ = ["Limiter"]

WINDOW_S: Final = 60.0
_WHOLE: Final = 1.0 - 1e-6  # of a token: many small refills do not add up exactly
REFUSED_PER_BURST: Final = 10  # a client that comes back with 1,000 channels is refused often, and means no harm


class Limiter:
    """Token bucket for messages, and counts of refused ones a minute; one per connection that sends.

    messages_per_s: refill. messages_burst: size of the bucket, in messages. bad_messages_per_minute: wrong
    messages that are borne; of those that come too fast, REFUSED_PER_BURST times the bucket are.
    """

    __slots__ = ("_bad", "_bad_max", "_burst", "_owed", "_per_s", "_refilled_s", "_refused", "_tokens", "_window_s")

    def __init__(self, messages_per_s: float, messages_burst: int, bad_messages_per_minute: int) -> None:
        self._per_s = messages_per_s
        self._burst = float(messages_burst)
        self._tokens = self._burst
        self._refilled_s = self._window_s = monotonic()
        self._owed = 0.0  # refused ones whose moment, that they were told, is still to come
        self._refused = self._bad = 0
        self._bad_max = bad_messages_per_minute

    def take(self) -> int:
        """Take one message's token. Returns 0, or in how many ms there will be one: then nothing was taken.

        Refused messages are told moments one behind the other, so that they do not come back as a herd.
        """
        now_s = monotonic()
        refill = (now_s - self._refilled_s) * self._per_s
        self._refilled_s = now_s
        self._tokens = min(self._burst, self._tokens + refill)
        self._owed = max(0.0, self._owed - refill)
        if self._tokens >= _WHOLE:
            self._tokens -= 1.0
            return 0
        self._owed += 1.0
        return max(1, ceil(round((self._owed - self._tokens) / self._per_s * 1000, 3)))

    def note_refused(self) -> bool:
        """Count one message that came too fast; True if that was one too many within a minute."""
        self._turn_window()
        self._refused += 1
        return self._refused > self._burst * REFUSED_PER_BURST

    def note_bad(self) -> bool:
        """Count one message that is wrong; True if that was one too many within a minute."""
        self._turn_window()
        self._bad += 1
        return self._bad > self._bad_max

    def _turn_window(self) -> None:
        now_s = monotonic()
        if now_s - self._window_s > WINDOW_S:
            self._window_s, self._refused, self._bad = now_s, 0, 0
