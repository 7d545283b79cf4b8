"""One timer for the pings and deadlines of all connections of a node.

Rules:
- A connection is visited once in `ping_interval_s`: if nothing came since the visit before, and it does not receive
  our data either (`progress.py`), it is cut; else it is pinged. So a half-open one is gone in two intervals at most
  (20 s by default).
- A message that has begun has a deadline (`expect`): its connection is told when that passed.
- A connection that is ending is cut when its deadline passed: its memory is not the peer's to keep.
- The visits are spread over the interval, so that no tick pings everybody.
"""

import asyncio
from collections.abc import Callable
from itertools import takewhile
from typing import Final, Protocol

__all__ = ["Spoke", "Wheel"]

TICK_S: Final = 0.25
CLOSE_TIMEOUT_S: Final = 1.5  # for the peer to answer a close frame; a slow consumer's memory is back <= 2 s


class Spoke(Protocol):
    """What the wheel turns: a connection's protocol."""

    slot: int

    def beat(self) -> None:
        """Ping, or cut if the peer seems dead."""

    def abort(self) -> None:
        """Cut now."""


class Wheel:
    """Beats every spoke once in ping_interval_s, and aborts those whose close takes too long."""

    def __init__(self, ping_interval_s: float) -> None:
        self.interval_s = ping_interval_s
        self._size = max(1, round(ping_interval_s / TICK_S))  # slots of a round
        self._tick_s = ping_interval_s / self._size
        self._slots: dict[int, set[Spoke]] = {}  # those with somebody in them
        self._now = 0  # slot visited last
        self._next = 0  # slot taken last: who come in one tick are not visited in one
        self._ending: dict[Spoke, float] = {}
        self._expected: dict[
            Spoke, tuple[float, Callable[[], None]]
        ] = {}  # by deadline, because all have the same time
        self._timer: asyncio.TimerHandle | None = None

    def add(self, spoke: Spoke) -> None:
        """Beat it once in every round from now on."""
        self._next = (self._next + 1) % self._size
        spoke.slot = self._next
        self._slots.setdefault(self._next, set()).add(spoke)
        if self._timer is None:
            self._schedule()

    def remove(self, spoke: Spoke) -> None:
        """Let it be. Idempotent."""
        self._take_out(spoke)
        self._ending.pop(spoke, None)
        self._expected.pop(spoke, None)

    def expect(self, spoke: Spoke, timeout_s: float, on_late: Callable[[], None]) -> None:
        """Call `on_late` when this time has passed, unless `came` is called before. timeout_s: always the same."""
        self._expected.pop(spoke, None)  # to the end of the order
        self._expected[spoke] = asyncio.get_running_loop().time() + timeout_s, on_late
        if self._timer is None:
            self._schedule()

    def came(self, spoke: Spoke) -> None:
        """Expect nothing any more. Idempotent."""
        self._expected.pop(spoke, None)

    def end_soon(self, spoke: Spoke, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Abort it unless it is removed within timeout_s."""
        self._expected.pop(spoke, None)
        self._take_out(spoke)  # a ping behind a close frame is a protocol error
        self._ending[spoke] = asyncio.get_running_loop().time() + timeout_s
        if self._timer is None:
            self._schedule()

    def _take_out(self, spoke: Spoke) -> None:
        slot = self._slots.get(spoke.slot)
        if slot is not None:
            slot.discard(spoke)
            if not slot:
                del self._slots[spoke.slot]

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._ending or self._slots or self._expected:  # with nobody to visit the timer ends, until somebody comes
            self._schedule()
        self._now = (self._now + 1) % self._size
        for spoke in tuple(self._slots.get(self._now, ())):
            spoke.beat()
        if self._expected:
            now_s = asyncio.get_running_loop().time()
            for spoke in list(takewhile(lambda each: self._expected[each][0] <= now_s, self._expected)):
                self._expected.pop(spoke)[1]()
        if self._ending:
            now_s = asyncio.get_running_loop().time()
            for spoke in [spoke for spoke, deadline_s in self._ending.items() if deadline_s <= now_s]:
                del self._ending[spoke]
                spoke.abort()
