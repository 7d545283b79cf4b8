"""Brake: delays responses to wrong keys, per address.

Rules:
- A request with a right key never waits: an attacker cannot lock out a backend on the same address.
- The first FREE failures in a row of an address are answered at once, then one every INTERVAL_S. A request that would
  wait longer than WAIT_MAX_S is refused at once, so that few requests are waiting.
- The number of tracked addresses is bounded; above it, all other addresses share one delay.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Final

__all__ = ["Brake"]

FREE: Final = 10  # for a backend of several processes with an old key
INTERVAL_S: Final = 0.5
WAIT_MAX_S: Final = 5.0  # half of a client's timeout
ADDRESSES_MAX: Final = 10_000


class Brake:
    """One per endpoint. clock: monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._next_s: dict[str, float] = {}
        self._swept_s = -math.inf

    def wait_s(self, address: str) -> float | None:
        """Record one failure of an address. Returns the delay of its response; None: refuse it at once."""
        now_s = self._clock()
        if address not in self._next_s and len(self._next_s) >= ADDRESSES_MAX:
            self._sweep(now_s)
            if len(self._next_s) >= ADDRESSES_MAX:
                address = ""
        slot_s = max(now_s - (FREE - 1) * INTERVAL_S, self._next_s.get(address, -math.inf))
        if slot_s - now_s > WAIT_MAX_S:
            return None
        self._next_s[address] = slot_s + INTERVAL_S
        return max(0.0, slot_s - now_s)

    def _sweep(self, now_s: float) -> None:
        """Forget addresses that would not wait. At most once per INTERVAL_S: it visits all of them."""
        if now_s - self._swept_s >= INTERVAL_S:
            self._swept_s = now_s
            self._next_s = {each: next_s for each, next_s in self._next_s.items() if next_s > now_s - FREE * INTERVAL_S}
