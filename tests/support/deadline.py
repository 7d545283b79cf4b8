"""A deadline for several processes, that a machine which has no CPU for them does not spoil.

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
    """Begins now. What one of these processes, or this one, waited for a CPU is added: on an idle machine, nothing."""

    def __init__(self, within_s: float, pids: Sequence[int]) -> None:
        self._within_s = within_s
        self._delays_s = {pid: _delay_s(pid) for pid in (*pids, os.getpid())}
        self._waited_s = 0.0
        self._began_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """How long ago it began, without what the process that waited longest for a CPU waited."""
        waited = (_delay_s(pid) - delay_s for pid, delay_s in self._delays_s.items())  # less than 0: it has ended
        self._waited_s = max(self._waited_s, *waited)
        return time.monotonic() - self._began_s - self._waited_s

    @property
    def left_s(self) -> float:
        """How long it is still; negative: it is over."""
        return self._within_s - self.elapsed_s


def _delay_s(pid: int) -> float:
    """Tell how long a process's main thread was ready to run and did not (Documentation/scheduler/sched-stats)."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (FileNotFoundError, ProcessLookupError):  # it has ended, or this is not Linux
        return 0.0
