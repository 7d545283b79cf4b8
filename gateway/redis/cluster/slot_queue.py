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


class _Pending:
    """One publication that is not answered yet."""

    __slots__ = ("deadline", "future", "send")

    def __init__(self, send: Send, future: "asyncio.Future[Any]", deadline: float) -> None:
        self.send = send
        self.future = future
        self.deadline = deadline


class _SlotQueue:
    """One slot that has unanswered or queued publications."""

    __slots__ = ("is_closed", "later", "rejected", "server", "unanswered")

    def __init__(self) -> None:
        self.unanswered = 0  # sent and unanswered publications
        self.server: object = None  # to which they were sent
        self.is_closed = False
        self.rejected: deque[_Pending] = deque()  # rejected ones, in the order in which they were sent
        self.later: deque[_Pending] = deque()  # later ones, not sent yet


class SlotQueues:
    """Sends publications, in order per slot. refresh_now: requests new slots. timeout_s: of each publication."""

    def __init__(
        self, refresh_now: Callable[[], None], *, timeout_s: float, metrics: Metrics, waiting_max: int = QUEUE_MAX
    ) -> None:
        self._refresh_now = refresh_now
        self._timeout_s = timeout_s
        self._drops = metrics.drops.labels("publish_queue_full")
        self._waiting_max = waiting_max
        self._waiting = 0  # rejected and queued publications of all slots
        self._queues: dict[int, _SlotQueue] = {}

    def send(self, name: bytes, server: object, send: Send) -> "asyncio.Future[Any]":
        """Send one publication. name: Redis channel. server: the slot's server now, as any object that identifies it.

        send: sends it to the server that has the slot at the time of the call; may be called more than once.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        slot = slot_of(name)
        queue = self._queues.get(slot)
        if queue is None:
            queue = self._queues[slot] = _SlotQueue()
        publication = _Pending(send, future, loop.time() + self._timeout_s)
        if queue.unanswered and queue.server is not server:
            queue.is_closed = True
        if not queue.is_closed:
            queue.server = server
            self._dispatch(slot, queue, publication)
        elif self._waiting >= self._waiting_max:
            self._drops.inc()
            fail(future, BrokerUnavailable("too many publications are pending", is_undone=True))
        else:
            self._wait(queue.later, publication)
        return future

    def _wait(self, later: deque[_Pending], publication: _Pending) -> None:
        self._waiting += 1
        later.append(publication)

    def _dispatch(self, slot: int, queue: _SlotQueue, publication: _Pending) -> None:
        answer = publication.send()
        if answer is None:
            self._on_rejection(slot, queue, publication)
            return
        queue.unanswered += 1
        if answer.done():
            self._on_answer(slot, queue, publication, answer)
        else:
            answer.add_done_callback(lambda done: self._on_answer(slot, queue, publication, done))

    def _on_answer(self, slot: int, queue: _SlotQueue, publication: _Pending, answer: "asyncio.Future[Any]") -> None:
        queue.unanswered -= 1
        error = None if answer.cancelled() else answer.exception()
        if isinstance(error, PublishRefused) and error.refusal.is_elsewhere:
            self._on_rejection(slot, queue, publication)
        elif not publication.future.done():
            if answer.cancelled():
                fail(publication.future, BrokerUnavailable("outcome unknown: cancelled"))
            elif error is not None:
                publication.future.set_exception(error)
                publication.future.exception()  # mark it as retrieved: callers may ignore the future
            else:
                publication.future.set_result(answer.result())
        self._settle(slot, queue)

    def _on_rejection(self, slot: int, queue: _SlotQueue, publication: _Pending) -> None:
        if not queue.is_closed:
            queue.is_closed = True
            self._refresh_now()
        if not self._is_overdue(publication):
            self._wait(queue.rejected, publication)
        self._settle(slot, queue)

    def _is_overdue(self, publication: _Pending) -> bool:
        """Fail a publication whose deadline has passed; returns True if so."""
        if asyncio.get_running_loop().time() < publication.deadline:
            return False
        fail(publication.future, BrokerUnavailable(f"no server accepted the command within {self._timeout_s:g} s"))
        return True

    def _settle(self, slot: int, queue: _SlotQueue) -> None:
        if queue.unanswered or self._queues.get(slot) is not queue:
            return
        if queue.rejected or queue.later:
            asyncio.get_running_loop().call_later(AGAIN_S, self._reopen, slot, queue)
            queue.unanswered += 1  # counts the timer, so that the queue is not settled before it fires
        else:
            del self._queues[slot]

    def _reopen(self, slot: int, queue: _SlotQueue) -> None:
        waiting = deque([*queue.rejected, *queue.later])
        queue.rejected.clear()
        queue.later.clear()
        self._waiting -= len(waiting)
        queue.is_closed, queue.server = False, None
        for publication in waiting:
            if publication.future.done() or self._is_overdue(publication):
                continue  # cancelled: do not send it
            if queue.is_closed:
                self._wait(queue.later, publication)  # an earlier one was rejected again
            else:
                self._dispatch(slot, queue, publication)
        queue.unanswered -= 1
        self._settle(slot, queue)
