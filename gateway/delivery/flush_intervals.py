"""FlushIntervals: delays publications of channels whose rule has `flush_ms`, so that they are written together.

Rules:
- The first publication is delivered at once. For `flush_ms` after each delivery the channel's publications wait;
  then all that wait are delivered as those of one read, which is one write for each client.
- A publication waits before anything looks at it, so it is as if Redis had been slower: order, positions and repairs
  are the same.
- Publications that wait are bounded in bytes, for each channel and for the node. What exceeds a bound is delivered at
  once, after those of its channel that wait: the interval becomes shorter, and nothing is lost.
- A node that drains delays nothing. Changed rules apply from a channel's next interval on.
- There is one timer for each channel that was used within the last interval, and none for a message.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from snorky.gateway.delivery.delivery_rules import DeliveryRules

__all__ = ["FlushIntervals"]

CHANNEL_MAX_BYTES: Final = 256 * 1024  # of one channel's publications that wait
NODE_MAX_BYTES: Final = 16 * 1024 * 1024  # of all
OVERHEAD_BYTES: Final = 64  # of a list's entry and the object

Batch = Mapping[str, Sequence[bytes]]


@dataclass(slots=True)
class _Waiting:
    timer: asyncio.TimerHandle
    payloads: list[bytes] = field(default_factory=list)
    size: int = 0


def _call_later(delay_s: float, callback: Callable[[str], None], key: str) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(delay_s, callback, key)


class FlushIntervals:
    """Passes publications on to `deliver`, at most once in each channel's interval. Keys: SERVICE:NAME."""

    def __init__(
        self,
        rules: DeliveryRules,
        deliver: Callable[[Batch], None],
        call_later: Callable[[float, Callable[[str], None], str], asyncio.TimerHandle] = _call_later,
    ) -> None:
        self._rules = rules
        self._deliver = deliver
        self._call_later = call_later
        self._waiting: dict[str, _Waiting] = {}
        self.total_bytes = 0  # of all publications that wait
        self._is_draining = False

    def take(self, batch: Batch) -> None:
        """Deliver the publications of one read, or let them wait."""
        if not (self._rules or self._waiting):
            self._deliver(batch)
            return
        now: dict[str, Sequence[bytes]] = {}
        for key, payloads in batch.items():
            waiting = self._waiting.get(key)
            if waiting is None:
                now[key] = payloads
                self._begin(key)
            else:
                size = sum(map(len, payloads)) + OVERHEAD_BYTES * len(payloads)
                waiting.payloads += payloads
                waiting.size += size
                self.total_bytes += size
                if waiting.size > CHANNEL_MAX_BYTES or self.total_bytes > NODE_MAX_BYTES:
                    now[key] = self._emptied(waiting)
        if now:
            self._deliver(now)

    def drain(self) -> None:
        """Deliver everything that waits, and delay nothing from now on."""
        self._is_draining = True
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            each.timer.cancel()
        if batch := {key: self._emptied(each) for key, each in waiting.items() if each.payloads}:
            self._deliver(batch)

    def _begin(self, key: str) -> None:
        interval_s = 0.0 if self._is_draining else self._rules.interval_s(key)
        if interval_s:
            self._waiting[key] = _Waiting(self._call_later(interval_s, self._end, key))

    def _end(self, key: str) -> None:
        """Deliver what waits at the end of a channel's interval; if there is something, another interval begins."""
        waiting = self._waiting.pop(key)
        if waiting.payloads:
            self._begin(key)
            self._deliver({key: self._emptied(waiting)})

    def _emptied(self, waiting: _Waiting) -> list[bytes]:
        payloads, waiting.payloads = waiting.payloads, []
        self.total_bytes -= waiting.size
        waiting.size = 0
        return payloads
