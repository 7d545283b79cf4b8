"""Deadlines: when something of a connection ends. One timer serves all of a node, and none runs without deadlines.

Rules:
- Deadlines are grouped by tick, and processed up to one tick late.
- They use the loop's clock: if a node's wall clock jumps, nothing ends too early or too late.
- While the loop is stalled the timer does not fire; `catch_up` then processes what is due before anything else happens.
"""

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

import structlog

__all__ = ["TICK_S", "Deadlines"]

TICK_S: Final = 0.25

_log = structlog.get_logger("snorky.deadlines")

What = TypeVar("What", bound=Hashable)


class Deadlines(Generic[What]):
    """on_due: called for each deadline that has passed."""

    def __init__(self, on_due: Callable[[What], None]) -> None:
        self._on_due = on_due
        self._due: dict[int, set[What]] = {}  # by tick
        self._ticked = 0  # the tick processed last
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(map(len, self._due.values()))

    def add(self, within_s: float, what: What) -> int:
        """Set a deadline; returns its tick, for `discard`."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._ticked = math.floor(loop.time() / TICK_S)
            self._timer = loop.call_later(TICK_S, self._tick)
        tick = max(self._ticked + 1, math.ceil((loop.time() + within_s) / TICK_S))
        self._due.setdefault(tick, set()).add(what)
        return tick

    def discard(self, tick: int | None, what: What) -> None:
        """Remove a deadline. Idempotent. tick: None = it has none."""
        due = None if tick is None else self._due.get(tick)
        if due is not None and tick is not None:
            due.discard(what)
            if not due:
                del self._due[tick]

    def catch_up(self) -> None:
        """Process what is due, if the timer is late. Costs 0.1 us if it is not."""
        timer = self._timer
        if timer is not None and asyncio.get_running_loop().time() > timer.when() + TICK_S:
            timer.cancel()
            self._tick()

    def stop(self) -> None:
        """Cancel the timer, and forget all deadlines."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = math.floor(loop.time() / TICK_S)
        # ticks may have been skipped while the loop stalled; after a very long stall there are fewer keys than ticks
        passed = range(self._ticked + 1, now + 1)
        self._ticked = now
        ticks = passed if len(passed) <= len(self._due) else sorted(tick for tick in self._due if tick <= now)
        for tick in ticks:
            for what in self._due.pop(tick, ()):
                try:
                    self._on_due(what)
                except Exception:  # the top of a timer: one deadline must not keep the others from passing
                    _log.exception("deadline failed")
        if self._due and self._timer is None:
            self._timer = loop.call_later(TICK_S, self._tick)
