"""SlotQueues: sends publications to the shards of a Cluster in the order of the calls, also while slots move.

Rules:
- A publication that a server rejects because the slot is elsewhere (MOVED, ASK, TRYAGAIN, CLUSTERDOWN) was not
  executed. It is sent again, to the slot's current server, until its deadline.
- After a rejection the slot is *closed*: later publications are queued. It is also closed if its server changes while
  publications to the former server are unanswered.
- When all sent publications of a closed slot are answered, the rejected and the queued ones are sent in order, and the
  slot is open again.
- Queued publications also fail at their deadline. At most `waiting_max` are queued for all slots; further ones fail at
  once and are counted.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.cluster.slots import slot_of
from snorky.gateway.redis.connection.pipeline import fail
from snorky.gateway.redis.pubsub.publisher import QUEUE_MAX, PublishRefused

__all__ = ["SlotQueues"]

AGAIN_S: Final = 0.02  # until the next attempt: a key that is being migrated is available again in a moment

Send = Callable[[], "asyncio.Future[Any] | None"]  # None: no server is known to have the slot


class _PendingSend:
    """One publication that is not answered yet."""

    __slots__ = ("due", "future", "send")

    def __init__(self, send: Send, future: "asyncio.Future[Any]", due: float) -> None:
        self.send = send
        self.future = future
        self.due = due


class _SlotQueue:
    """One slot that has unanswered or queued publications."""

    __slots__ = ("is_closed", "line", "on_way", "refused", "server")

    def __init__(self) -> None:
        self.on_way = 0  # sent and unanswered publications
        self.server: object = None  # to which they were sent
        self.is_closed = False
        self.refused: deque[_PendingSend] = deque()  # rejected ones, in the order in which they were sent
        self.line: deque[_PendingSend] = deque()  # later ones, not sent yet


class SlotQueues:
    """Sends publications, in order per slot. hurry: requests a refresh of the slots. timeout_s: of each publication."""

    def __init__(
        self, hurry: Callable[[], None], *, timeout_s: float, metrics: Metrics, waiting_max: int = QUEUE_MAX
    ) -> None:
        self._hurry = hurry
        self._timeout_s = timeout_s
        self._drops = metrics.drops.labels("publish_queue_full")
        self._waiting_max = waiting_max
        self._waiting = 0  # rejected and queued publications of all slots
        self._lanes: dict[int, _SlotQueue] = {}

    def send(self, name: bytes, server: object, send: Send) -> "asyncio.Future[Any]":
        """Send one publication. name: Redis channel. server: the slot's server now, as any object that identifies it.

        send: sends it to the server that has the slot at the time of the call; may be called more than once.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        slot = slot_of(name)
        lane = self._lanes.get(slot)
        if lane is None:
            lane = self._lanes[slot] = _SlotQueue()
        trip = _PendingSend(send, future, loop.time() + self._timeout_s)
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

    def _wait(self, line: deque[_PendingSend], trip: _PendingSend) -> None:
        self._waiting += 1
        line.append(trip)

    def _depart(self, slot: int, lane: _SlotQueue, trip: _PendingSend) -> None:
        answer = trip.send()
        if answer is None:
            self._refuse(slot, lane, trip)
            return
        lane.on_way += 1
        if answer.done():
            self._arrive(slot, lane, trip, answer)
        else:
            answer.add_done_callback(lambda done: self._arrive(slot, lane, trip, done))

    def _arrive(self, slot: int, lane: _SlotQueue, trip: _PendingSend, answer: "asyncio.Future[Any]") -> None:
        lane.on_way -= 1
        error = None if answer.cancelled() else answer.exception()
        if isinstance(error, PublishRefused) and error.refusal.is_elsewhere:
            self._refuse(slot, lane, trip)
        elif not trip.future.done():
            if answer.cancelled():
                fail(trip.future, BrokerUnavailable("outcome unknown: cancelled"))
            elif error is not None:
                trip.future.set_exception(error)
                trip.future.exception()  # mark it as retrieved: callers may ignore the future
            else:
                trip.future.set_result(answer.result())
        self._settle(slot, lane)

    def _refuse(self, slot: int, lane: _SlotQueue, trip: _PendingSend) -> None:
        if not lane.is_closed:
            lane.is_closed = True
            self._hurry()
        if not self._is_overdue(trip):
            self._wait(lane.refused, trip)
        self._settle(slot, lane)

    def _is_overdue(self, trip: _PendingSend) -> bool:
        """Fail a publication whose deadline has passed; returns True if so."""
        if asyncio.get_running_loop().time() < trip.due:
            return False
        fail(trip.future, BrokerUnavailable(f"no server accepted the command within {self._timeout_s:g} s"))
        return True

    def _settle(self, slot: int, lane: _SlotQueue) -> None:
        if lane.on_way or self._lanes.get(slot) is not lane:
            return
        if lane.refused or lane.line:
            asyncio.get_running_loop().call_later(AGAIN_S, self._reopen, slot, lane)
            lane.on_way += 1  # counts the timer, so that the lane is not settled before it fires
        else:
            del self._lanes[slot]

    def _reopen(self, slot: int, lane: _SlotQueue) -> None:
        waiting = deque([*lane.refused, *lane.line])
        lane.refused.clear()
        lane.line.clear()
        self._waiting -= len(waiting)
        lane.is_closed, lane.server = False, None
        for trip in waiting:
            if trip.future.done() or self._is_overdue(trip):
                continue  # cancelled: do not send it
            if lane.is_closed:
                self._wait(lane.line, trip)  # an earlier one was rejected again
            else:
                self._depart(slot, lane, trip)
        lane.on_way -= 1
        self._settle(slot, lane)
