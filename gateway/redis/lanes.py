"""Lanes: publications on their way to shards of a Cluster, in the order of the calls also while slots move.

Rules:
- What a server refuses because the slot is elsewhere (MOVED, ASK, TRYAGAIN, CLUSTERDOWN) was surely not done. It is
  sent again, where the slot is then, until its deadline.
- A slot with something refused is *closed*: what comes later lines up behind it. So is one whose server changed while
  something is still on the way to the former one.
- A closed slot opens when all is answered that was on the way, and its line has gone out in its order.
- Who lines up is answered by the deadline too, and not more than `waiting_max` line up in all: beyond, publications
  fail at once and are counted.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from gateway.errors import BrokerUnavailable
from gateway.metrics import Metrics
from gateway.redis.pipeline import fail
from gateway.redis.publisher import QUEUE_MAX, PublishRefused
from gateway.redis.slots import slot_of

__all__ = ["Lanes", "is_elsewhere"]

AGAIN_S: Final = 0.02  # a slot that is being moved key by key: what is half way can be had in a moment

Send = Callable[[], "asyncio.Future[Any] | None"]  # None: nobody has the slot at present


def is_elsewhere(text: str) -> bool:
    """Tell whether a server's error says that another one is to be asked, or this one later."""
    return text.startswith(("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN"))


class _Trip:
    """One publication until it is answered."""

    __slots__ = ("due", "future", "send")

    def __init__(self, send: Send, future: "asyncio.Future[Any]", due: float) -> None:
        self.send = send
        self.future = future
        self.due = due


class _Lane:
    """One slot, as long as something of it is on the way or lined up."""

    __slots__ = ("is_closed", "line", "on_way", "refused", "server")

    def __init__(self) -> None:
        self.on_way = 0
        self.server: object = None  # to which these are
        self.is_closed = False
        self.refused: deque[_Trip] = deque()  # in the order they were sent in
        self.line: deque[_Trip] = deque()  # what came later


class Lanes:
    """Sends by slots. hurry: has it found out where slots are. timeout_s: of every publication."""

    def __init__(
        self, hurry: Callable[[], None], *, timeout_s: float, metrics: Metrics, waiting_max: int = QUEUE_MAX
    ) -> None:
        self._hurry = hurry
        self._timeout_s = timeout_s
        self._drops = metrics.drops.labels("publish_queue_full")
        self._waiting_max = waiting_max
        self._waiting = 0  # in all lanes: refused, and lined up
        self._lanes: dict[int, _Lane] = {}

    def send(self, name: bytes, server: object, send: Send) -> "asyncio.Future[Any]":
        """Send one publication. name: of its channel. server: that has the slot now, whatever tells it from others.

        send: sends it to who has the slot when it is called; may be called more than once.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        slot = slot_of(name)
        lane = self._lanes.get(slot)
        if lane is None:
            lane = self._lanes[slot] = _Lane()
        trip = _Trip(send, future, loop.time() + self._timeout_s)
        if lane.on_way and lane.server is not server:
            lane.is_closed = True
        if not lane.is_closed:
            lane.server = server
            self._depart(slot, lane, trip)
        elif self._waiting >= self._waiting_max:
            self._drops.inc()
            fail(future, BrokerUnavailable("too many publications are pending", is_undone=True))
        else:
            self._wait(lane.line, trip)
        return future

    def _wait(self, line: deque[_Trip], trip: _Trip) -> None:
        self._waiting += 1
        line.append(trip)

    def _depart(self, slot: int, lane: _Lane, trip: _Trip) -> None:
        answer = trip.send()
        if answer is None:
            self._refuse(slot, lane, trip)
            return
        lane.on_way += 1
        if answer.done():
            self._arrive(slot, lane, trip, answer)
        else:
            answer.add_done_callback(lambda done: self._arrive(slot, lane, trip, done))

    def _arrive(self, slot: int, lane: _Lane, trip: _Trip, answer: "asyncio.Future[Any]") -> None:
        lane.on_way -= 1
        error = None if answer.cancelled() else answer.exception()
        if isinstance(error, PublishRefused) and is_elsewhere(error.what):
            self._refuse(slot, lane, trip)
        elif not trip.future.done():
            if answer.cancelled():
                fail(trip.future, BrokerUnavailable("outcome unknown: cancelled"))
            elif error is not None:
                trip.future.set_exception(error)
                trip.future.exception()  # read once: it may be ignored
            else:
                trip.future.set_result(answer.result())
        self._settle(slot, lane)

    def _refuse(self, slot: int, lane: _Lane, trip: _Trip) -> None:
        if not lane.is_closed:
            lane.is_closed = True
            self._hurry()
        if not self._is_overdue(trip):
            self._wait(lane.refused, trip)
        self._settle(slot, lane)

    def _is_overdue(self, trip: _Trip) -> bool:
        """Fail a publication that nobody has taken in time."""
        if asyncio.get_running_loop().time() < trip.due:
            return False
        fail(trip.future, BrokerUnavailable(f"no server took it within {self._timeout_s:g} s"))
        return True

    def _settle(self, slot: int, lane: _Lane) -> None:
        if lane.on_way or self._lanes.get(slot) is not lane:
            return
        if lane.refused or lane.line:
            asyncio.get_running_loop().call_later(AGAIN_S, self._reopen, slot, lane)
            lane.on_way += 1  # the timer's: nothing else settles meanwhile
        else:
            del self._lanes[slot]

    def _reopen(self, slot: int, lane: _Lane) -> None:
        waiting = deque([*lane.refused, *lane.line])
        lane.refused.clear()
        lane.line.clear()
        self._waiting -= len(waiting)
        lane.is_closed, lane.server = False, None
        for trip in waiting:
            if trip.future.done() or self._is_overdue(trip):
                continue  # cancelled: nobody wants it sent
            if lane.is_closed:
                self._wait(lane.line, trip)  # the one before it found nobody
            else:
                self._depart(slot, lane, trip)
        lane.on_way -= 1
        self._settle(slot, lane)
