"""Brake: makes those who present wrong keys wait, one address after another's pace.

Rules:
- Whoever has a right key never waits: an attacker on the same address locks nobody out.
- Of one address FREE failures in a row are answered at once, then one every INTERVAL_S. Who would wait longer than
  WAIT_MAX_S is turned away at once, so that few requests are held.
- The number of addresses that are known is bounded; beyond it all others share one pace.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Final

__all__ = ["Brake"]

FREE: Final = 10  # a backend with an old key, and several processes
INTERVAL_S: Final = 0.5
WAIT_MAX_S: Final = 5.0  # half of what a client waits
ADDRESSES_MAX: Final = 10_000


class Brake:
    """One per door. clock: monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._next_s: dict[str, float] = {}

    def wait_s(self, address: str) -> float | None:
        """Note one failure of an address. Returns how long its answer waits; None: it is to be turned away."""
        now_s = self._clock()
        if address not in self._next_s and len(self._next_s) >= ADDRESSES_MAX:
            self._next_s = {each: next_s for each, next_s in self._next_s.items() if next_s > now_s - FREE * INTERVAL_S}
            if len(self._next_s) >= ADDRESSES_MAX:
                address = ""
        slot_s = max(now_s - (FREE - 1) * INTERVAL_S, self._next_s.get(address, -math.inf))
        if slot_s - now_s > WAIT_MAX_S:
            return None
        self._next_s[address] = slot_s + INTERVAL_S
        return max(0.0, slot_s - now_s)
