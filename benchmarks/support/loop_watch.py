"""The longest step of an event loop: everything that runs between two turns of one callback."""

import asyncio
import gc
from time import perf_counter, thread_time
from typing import Any

__all__ = ["LoopWatch"]


class LoopWatch:
    """Measures each step of the running event loop, which it keeps from sleeping.

    A step is one iteration of the loop: the callbacks that were ready, and the sockets that were. cpu_ms: the longest
    by the CPU time of the loop's thread, user and kernel; other programs on the machine do not change it. wall_ms: the
    longest by the clock. gc_ms: the longest collection of cyclic garbage, which is a part of some step.
    """

    def __init__(self) -> None:
        self.cpu_ms = self.wall_ms = self.gc_ms = 0.0
        self._cpu_s = self._wall_s = self._gc_began_s = 0.0
        self._next: asyncio.Handle | None = None

    def start(self) -> None:
        """Start with figures of zero."""
        self.stop()
        self.cpu_ms = self.wall_ms = self.gc_ms = 0.0
        gc.callbacks.append(self._on_collection)
        self._cpu_s, self._wall_s = thread_time(), perf_counter()
        self._next = asyncio.get_running_loop().call_soon(self._step)

    def stop(self) -> None:
        """Stop measuring; the figures remain. Idempotent."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
            gc.callbacks.remove(self._on_collection)

    def _step(self) -> None:
        cpu_s, wall_s = thread_time(), perf_counter()
        self.cpu_ms = max(self.cpu_ms, (cpu_s - self._cpu_s) * 1e3)
        self.wall_ms = max(self.wall_ms, (wall_s - self._wall_s) * 1e3)
        self._cpu_s, self._wall_s = cpu_s, wall_s
        self._next = asyncio.get_running_loop().call_soon(self._step)

    def _on_collection(self, phase: str, _facts: dict[str, Any]) -> None:
        if phase == "start":
            self._gc_began_s = thread_time()
        else:
            self.gc_ms = max(self.gc_ms, (thread_time() - self._gc_began_s) * 1e3)
