"""A deadline for several processes that excludes time without a CPU, so that busy machines do not fail tests.

deadline = Deadline(15.0, [node.pid, redis.pid])
while not done():
    assert deadline.left_s > 0
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Deadline"]


class Deadline:
    """Starts now. Extended by the time that these processes or this one waited for a CPU: on an idle machine, none."""

    def __init__(self, within_s: float, pids: Sequence[int]) -> None:
        self._within_s = within_s
        self._delays_s = {pid: _delay_s(pid) for pid in (*pids, os.getpid())}
        self._waited_s = 0.0
        self._began_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, minus the longest wait of a process for a CPU."""
        waited = (_delay_s(pid) - delay_s for pid, delay_s in self._delays_s.items())  # less than 0: it has ended
        self._waited_s = max(self._waited_s, *waited)
        return time.monotonic() - self._began_s - self._waited_s

    @property
    def left_s(self) -> float:
        """Seconds left; negative when it is over."""
        return self._within_s - self.elapsed_s


def _delay_s(pid: int) -> float:
    """Return how long a process's main thread was runnable but did not run (Documentation/scheduler/sched-stats)."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (FileNotFoundError, ProcessLookupError):  # it has ended, or this is not Linux
        return 0.0
