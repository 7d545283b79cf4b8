"""Time, as the session needs it."""

from collections.abc import Callable
from typing import Protocol

__all__ = ["Backoff", "Clock"]


class Clock(Protocol):
    """A monotonic clock with timers."""

    def now_s(self) -> float:
        """Seconds since any moment."""

    def after(self, delay_s: float, run: Callable[[], None]) -> Callable[[], None]:
        """Run something later; returns what cancels it, also when it has run."""


class Backoff:
    """Full jitter: each wait is random under a bound that doubles, so that a thousand clients do not come at once."""

    def __init__(self, *, base_s: float, max_s: float, uniform: Callable[[float, float], float]) -> None:
        self._base_s = base_s
        self._max_s = max_s
        self._uniform = uniform
        self._failures = 0

    def next_s(self) -> float:
        """Tell how long to wait before the next attempt."""
        bound_s = min(self._max_s, self._base_s * 2 ** min(self._failures, 30))
        self._failures += 1
        return self._uniform(0.0, bound_s)

    def reset(self) -> None:
        """Begin anew: a connection held."""
        self._failures = 0
