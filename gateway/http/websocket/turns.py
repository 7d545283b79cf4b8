"""Turns: a round-robin queue of clients that send much at once, so that the messages of other clients are not delayed.

Rules:
- A read that is one small message is processed immediately and never comes here.
- In each iteration of the event loop the whole queue gets SHARE_S, and each client in it TURN_S, but at least one
  message. An idle node starts the next iteration immediately, so the limits cost no throughput.
- The node does not read from a client in the queue, so it holds one read of it at most.
"""

import asyncio
from collections import deque
from time import perf_counter
from typing import Final, Protocol

import structlog
from prometheus_client import Gauge

__all__ = ["TURN_S", "Taker", "Turns"]

SHARE_S: Final = 0.000_3
TURN_S: Final = 0.000_1

_log = structlog.get_logger("snorky.turns")


class Taker(Protocol):
    """A client in the queue: a connection's protocol."""

    def take_turn(self, until_s: float) -> bool:
        """Process one message, and more until `until_s` (`perf_counter`). False: none is left, or it must wait."""

    def abort(self) -> None:
        """Close at once: an error of ours occurred in its turn."""


class Turns:
    """The queue of one node's clients. length: the gauge of how many are in it."""

    def __init__(self, length: Gauge) -> None:
        self._length = length
        self._line: deque[Taker] = deque()
        self._is_due = False

    def join(self, taker: Taker) -> None:
        """Give a client turns from the next iteration on, until `take_turn` returns False. It must not be queued."""
        self._line.append(taker)
        self._length.inc()
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._share)

    def _share(self) -> None:
        line, now_s = self._line, perf_counter()
        end_s = now_s + SHARE_S
        while line and now_s < end_s:
            taker = line.popleft()
            try:
                if taker.take_turn(min(now_s + TURN_S, end_s)):
                    line.append(taker)
                else:
                    self._length.dec()
            except Exception:  # the other clients must continue
                _log.exception("turn failed")
                self._length.dec()
                taker.abort()
            now_s = perf_counter()
        self._is_due = bool(line)
        if line:
            asyncio.get_running_loop().call_soon(self._share)
