"""The session's clock, and delays between attempts to connect."""

from collections.abc import Callable
from typing import Protocol

__all__ = ["Backoff", "Clock"]


class Clock(Protocol):
    """A monotonic clock with timers."""

    def now_s(self) -> float:
        """Return the seconds since an arbitrary start."""

    def after(self, delay_s: float, run: Callable[[], None]) -> Callable[[], None]:
        """Call `run` after a delay; return a function that cancels it, and does nothing if it has run."""


class Backoff:
    """Exponential backoff with full jitter: random delays below a bound that doubles, so clients spread out."""

    def __init__(self, *, base_s: float, max_s: float, uniform: Callable[[float, float], float]) -> None:
        self._base_s = base_s
        self._max_s = max_s
        self._uniform = uniform
        self._failures = 0

    def next_s(self) -> float:
        """Count a failure; return the delay before the next attempt."""
        bound_s = min(self._max_s, self._base_s * 2 ** min(self._failures, 30))
        self._failures += 1
        return self._uniform(0.0, bound_s)

    def reset(self) -> None:
        """Set the failures to 0: a connection was stable."""
        self._failures = 0
