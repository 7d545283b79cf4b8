"""FlushIntervals: delays publications of channels whose rule has `flush_ms`, so that they are written together.

Rules:
- The first publication is delivered at once. For `flush_ms` after each delivery the channel's publications wait;
  then all that wait are delivered as those of one read, which is one write for each client.
- A publication waits before anything looks at it, so order and positions are the same. A comparison of positions
  with a history calls `release` first: publications that wait are not missing.
- Intervals that end in one iteration of the event loop are one delivery, so that its chunks hold.
- Publications that wait are bounded in bytes, for each channel and for the node. What exceeds a bound is delivered at
  once, after those of its channel that wait: the interval becomes shorter, and nothing is lost.
- A node that drains delays nothing. Changed rules apply from a channel's next interval on.
- There is one timer for each channel that was used within the last interval, and none for a message.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from snorky.gateway.delivery.delivery_rules import DeliveryRules

__all__ = ["FlushIntervals"]

CHANNEL_MAX_BYTES: Final = 256 * 1024  # of one channel's publications that wait
NODE_MAX_BYTES: Final = 16 * 1024 * 1024  # of all
OVERHEAD_BYTES: Final = 64  # of a list's entry and the object

Batch = Mapping[str, Sequence[bytes]]
_log = structlog.get_logger("snorky.fanout")


class Loop(Protocol):
    """What this needs of an event loop."""

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """See asyncio."""

    def call_soon(self, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        """See asyncio."""


@dataclass(slots=True)
class _Waiting:
    timer: asyncio.TimerHandle
    payloads: list[bytes] = field(default_factory=list)
    size: int = 0


class FlushIntervals:
    """Passes publications on to `deliver`, at most once in each channel's interval. Keys: SERVICE:NAME.

    loop: None = the running one. on_dropped: set by the fan-out; called with the number of publications discarded.
    """

    def __init__(self, rules: DeliveryRules, deliver: Callable[[Batch], None], loop: Loop | None = None) -> None:
        self._rules = rules
        self._deliver = deliver
        self._loop = loop
        self._waiting: dict[str, _Waiting] = {}
        self._due: list[tuple[str, _Waiting]] = []  # whose interval has ended in this iteration of the loop
        self.total_bytes = 0  # of all publications that wait
        self._is_draining = False
        self.on_dropped: Callable[[int], object] = lambda _count: None

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
                continue
            size = sum(map(len, payloads)) + OVERHEAD_BYTES * len(payloads)
            waiting.payloads += payloads
            waiting.size += size
            self.total_bytes += size
            if waiting.size > CHANNEL_MAX_BYTES or self.total_bytes > NODE_MAX_BYTES:
                now[key] = self._emptied(waiting)
        if now:
            self._deliver(now)

    def release(self, key: str) -> None:
        """Deliver what waits in a channel now."""
        waiting = self._waiting.get(key)
        if waiting is not None and waiting.payloads:
            self._pass_on({key: self._emptied(waiting)})

    def forget(self, key: str) -> None:
        """Discard publications that wait in a channel without subscribers."""
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            waiting.timer.cancel()
            self.on_dropped(len(self._emptied(waiting)))

    def drain(self) -> None:
        """Deliver everything that waits, and delay nothing from now on."""
        self._is_draining = True
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            each.timer.cancel()
        self._pass_on({key: self._emptied(each) for key, each in waiting.items() if each.payloads})

    def _begin(self, key: str) -> None:
        interval_s = 0.0 if self._is_draining else self._rules.interval_s(key)
        if interval_s:
            loop = self._loop or asyncio.get_running_loop()
            self._waiting[key] = _Waiting(loop.call_later(interval_s, self._end, key))

    def _end(self, key: str) -> None:
        """Note that a channel's interval has ended; the first in an iteration of the loop calls for the delivery."""
        if not self._due:
            (self._loop or asyncio.get_running_loop()).call_soon(self._deliver_due)
        self._due.append((key, self._waiting[key]))

    def _deliver_due(self) -> None:
        """Deliver what waits in channels whose interval has ended; where there is something, another one begins."""
        due, self._due = self._due, []
        batch: dict[str, Sequence[bytes]] = {}
        for key, waiting in due:
            if self._waiting.get(key) is not waiting:  # forgotten since
                continue
            del self._waiting[key]
            if waiting.payloads:
                batch[key] = self._emptied(waiting)
                self._begin(key)
        self._pass_on(batch)

    def _pass_on(self, batch: Batch) -> None:
        try:
            if batch:
                self._deliver(batch)
        except Exception as error:  # an error of a service must not stop a timer or a drain
            _log.exception("publications not processed", error=repr(error))

    def _emptied(self, waiting: _Waiting) -> list[bytes]:
        payloads, waiting.payloads = waiting.payloads, []
        self.total_bytes -= waiting.size
        waiting.size = 0
        return payloads
