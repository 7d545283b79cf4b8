"""Publisher: sends publications, pipelined. What is queued within one loop tick goes out as one write, in order.

Rules:
- Redis answers in the order it was asked, so the oldest publication without an answer owns the next one. Any
  doubt about that (an answer too many, a deadline) ends the connection: no answer is ever given to another.
- What was written and not answered is never sent again: it may have been delivered. It fails at once when its
  connection does. What was not yet written waits for the next connection, until its deadline.
- Memory is bounded, in publications and in bytes; beyond, publications fail at once and are counted.
- Every publication is answered by its deadline. Deadlines are in the order of the queue, so one timer serves all.
"""

import asyncio
from collections import deque
from typing import Any

import hiredis

from gateway.errors import BrokerUnavailable
from gateway.metrics import Metrics
from gateway.redis.link import Link
from gateway.redis.target import RedisTarget
from gateway.redis.wire import Gets, Wire, WireError

__all__ = ["PublishRefused", "Publisher", "fail"]

QUEUE_MAX = 100_000  # half a second of what one node can publish
QUEUE_MAX_BYTES = 32 * 1024 * 1024
LATE_S = 0.1

# future, bytes of the command, deadline in loop time
_Pending = tuple["asyncio.Future[Any]", bytes, float]


class PublishRefused(BrokerUnavailable):
    """Redis answered a publish with an error: it was surely not delivered. Raised by `Publisher.publish`."""


class Publisher:
    """The speaking half of a broker. publish_timeout_s: from `publish` to the answer, whatever happens between.

    role: for metrics and logs. is_sharded: by SPUBLISH, in a Cluster.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        client_name: str,
        metrics: Metrics,
        publish_timeout_s: float,
        dial_timeout_s: float,
        role: str = "publisher",
        is_sharded: bool = False,
        queue_max: int = QUEUE_MAX,
        queue_max_bytes: int = QUEUE_MAX_BYTES,
    ) -> None:
        self._publish_timeout_s = publish_timeout_s
        self._verb = b"*3\r\n$8\r\nSPUBLISH" if is_sharded else b"*3\r\n$7\r\nPUBLISH"
        self._queue_max = queue_max
        self._queue_max_bytes = queue_max_bytes
        self._drops = metrics.drops.labels("publish_queue_full")
        self._link = Link(
            target,
            role=role,
            name=client_name,
            on_up=self._on_up,
            on_down=self._on_down,
            metrics=metrics,
            dial_timeout_s=dial_timeout_s,
        )
        self._waiting: deque[_Pending] = deque()  # not written yet
        self._written: deque[_Pending] = deque()  # written, not answered
        self._pending_bytes = 0  # of both
        self._is_flush_due = False
        self._is_stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the timer was to fire

    def start(self) -> None:
        """Begin to connect. Call once, on the event loop that all else is called on."""
        self._link.start()

    async def stop(self) -> None:
        """End the connection; what is pending fails. Idempotent."""
        self._is_stopped = True
        await self._link.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._fail(self._waiting, "the broker is stopped")

    def publish(self, name: bytes, payload: bytes) -> "asyncio.Future[int]":
        """Queue one publication to the Redis channel `name`; never waits.

        The future: number of subscribers reached; BrokerUnavailable, or its subclass PublishRefused if Redis said
        no. Cancelled before it was written, it is not sent.
        """
        words = (self._verb, len(name), name, len(payload), payload)
        return self._queue(b"%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % words)

    def _queue(self, data: bytes) -> "asyncio.Future[Any]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._is_stopped:
            fail(future, BrokerUnavailable("the broker is stopped"))
            return future
        if (
            len(self._waiting) + len(self._written) >= self._queue_max
            or self._pending_bytes + len(data) > self._queue_max_bytes
        ):
            self._drops.inc()
            fail(future, BrokerUnavailable("too many publications are pending"))
            return future
        self._waiting.append((future, data, loop.time() + self._publish_timeout_s))
        self._pending_bytes += len(data)
        if not self._is_flush_due:
            self._is_flush_due = True
            loop.call_soon(self._flush)
        return future

    def redial_if_owing(self, for_s: float, reason: str) -> None:
        """Give the connection up if Redis has not answered something that was published `for_s` ago."""
        if self._written:
            since = self._written[0][2] - self._publish_timeout_s
            if asyncio.get_running_loop().time() - since >= for_s:
                self._link.redial(reason)

    # -- out ---------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._timer is None and self._waiting:
            self._arm()
        wire = self._link.wire
        if wire is None or wire.is_congested or not self._waiting:
            return  # `_on_up` and `on_writable` come here again
        waiting, self._waiting = self._waiting, deque()
        commands = []
        for pending in waiting:
            if pending[0].done():  # cancelled: nobody wants it sent
                self._pending_bytes -= len(pending[1])
            else:
                commands.append(pending[1])
                self._written.append(pending)
        wire.write(b"".join(commands))

    def _on_up(self, wire: Wire) -> None:
        wire.consume = self._consume
        wire.on_writable = self._flush
        self._flush()

    def _on_down(self, error: WireError) -> None:
        self._fail(self._written, f"outcome unknown: {error}")

    # -- in ----------------------------------------------------------------------------------------------------

    def _consume(self, gets: Gets) -> None:
        written = self._written
        while (reply := gets()) is not False:
            if not written:
                raise WireError(f"unasked answer: {str(reply)[:200]}")
            future, data, _ = written.popleft()
            self._pending_bytes -= len(data)
            if type(reply) is int:
                if not future.done():
                    future.set_result(reply)
            elif isinstance(reply, hiredis.ReplyError):
                fail(future, PublishRefused(str(reply)))
                self._link.on_refused(reply)
            else:
                fail(future, BrokerUnavailable("outcome unknown: answer out of place"))
                raise WireError(f"answer out of place: {str(reply)[:200]}")
        self._link.settle()

    # -- deadlines ---------------------------------------------------------------------------------------------

    def _arm(self, delay_s: float = 0.0) -> None:
        head = self._written or self._waiting
        if head:
            loop = asyncio.get_running_loop()
            self._due = max(head[0][2], loop.time() + delay_s)
            self._timer = loop.call_at(self._due, self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if now - self._due > LATE_S:  # the loop stood still; the answers may be there, unread behind this call
            self._arm(LATE_S)
            return
        if self._written and self._written[0][2] <= now:
            self._link.redial(f"a publish was not answered within {self._publish_timeout_s:g} s")
        expired: deque[_Pending] = deque()
        while self._waiting and self._waiting[0][2] <= now:
            expired.append(self._waiting.popleft())
        self._fail(expired, f"no connection within {self._publish_timeout_s:g} s")
        self._arm()

    def _fail(self, pending: deque[_Pending], what: str) -> None:
        while pending:
            future, data, _ = pending.popleft()
            self._pending_bytes -= len(data)
            fail(future, BrokerUnavailable(what))


def fail(future: "asyncio.Future[Any]", error: BrokerUnavailable) -> None:
    """Fail a future that may be ignored."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # read once: who ignores the future hears nothing of it later either
