"""Breaker: stops asking a backend that fails, so that its clients need not wait for each timeout.

After FAILURES_MAX failures in a row no request is sent for PAUSE_S; then one, the probe. If it succeeds, all are
sent again, else the next pause begins.
"""

from collections.abc import Callable
from typing import Final

__all__ = ["Breaker"]

FAILURES_MAX: Final = 5
PAUSE_S: Final = 1.0


class Breaker:
    """One per hook. clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0  # in a row
        self._until_s = 0.0  # the end of the pause
        self._is_probing = False

    @property
    def refuses(self) -> bool:
        """True if no request may be sent now."""
        if self._failures < FAILURES_MAX:
            return False
        return self._is_probing or self._clock() < self._until_s

    def take(self) -> bool:
        """Ask to send a request; False = not now. The caller must then call `succeeded`, `failed` or `gave_up`."""
        if self.refuses:
            return False
        self._is_probing = self._failures >= FAILURES_MAX
        return True

    def succeeded(self) -> None:
        """Record a usable answer, whether it was yes or no."""
        self._failures = 0
        self._is_probing = False

    def failed(self) -> None:
        """Record a failure."""
        self._failures += 1
        self._is_probing = False
        if self._failures >= FAILURES_MAX:
            self._until_s = self._clock() + PAUSE_S

    def gave_up(self) -> None:
        """Record that the request was cancelled: it says nothing of the backend."""
        self._is_probing = False
