"""Pipeline: requests to Redis over one connection. Requests queued in one loop tick are sent in order by one write.

Rules:
- Redis answers in the order of the requests, so the next answer belongs to the oldest unanswered request. If that
  becomes uncertain (an unexpected answer, a missed deadline), the connection is closed, so no answer goes to a wrong
  request.
- A request that was written but not answered is never sent again, because it may have been executed. It fails as soon
  as its connection is lost. A request that was not yet written waits for the next connection until its deadline.
  (Subclasses may differ: `history.appender`.)
- Memory is bounded, in requests and in bytes; above the limits, requests fail at once and are counted. While there is
  any room one request of any size is accepted, otherwise a large one could never be sent.
- Every request completes or fails by its deadline. Deadlines are in queue order, so one timer is enough.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import Any, Final, TypeVar

from prometheus_client import Counter

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.reconnect import ReconnectingConnection
from snorky.gateway.redis.connection.resp import ConnectionLost, Gets, RespConnection

__all__ = ["Pipeline", "Request", "all_ended", "fail"]

LATE_S: Final = 0.1

_T = TypeVar("_T")

Request = tuple["asyncio.Future[Any]", bytes, float, int]  # future, bytes, deadline in loop time, answers that it gets


class Pipeline:
    """One connection. A subclass queues requests with `_queue`, and reads the answers in `_consume`.

    role: for metrics and logs. timeout_s: from `_queue` to the last answer, including reconnects. queue_max,
    queue_max_bytes: limits of all unanswered requests. refused: counts requests above the limits.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        role: str,
        client_name: str,
        metrics: Metrics,
        timeout_s: float,
        dial_timeout_s: float,
        queue_max: int,
        queue_max_bytes: int,
        refused: Counter,
    ) -> None:
        self._timeout_s = timeout_s
        self._queue_max = queue_max
        self._queue_max_bytes = queue_max_bytes
        self._refused = refused
        self._link = ReconnectingConnection(
            target,
            role=role,
            name=client_name,
            on_up=self._on_up,
            on_down=self._on_down,
            metrics=metrics,
            dial_timeout_s=dial_timeout_s,
        )
        self._waiting: deque[Request] = deque()  # not written yet
        self._written: deque[Request] = deque()  # written, not completely answered
        self._pending_bytes = 0  # of both
        self._is_flush_due = False
        self._is_stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0  # when it was to fire

    def start(self) -> None:
        """Start to connect. Call once, on the event loop of all other calls."""
        self._link.start()

    async def stop(self) -> None:
        """Close the connection; pending requests fail. Idempotent."""
        self._is_stopped = True
        await self._link.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._fail(self._waiting, "the connection is closed")

    def redial_if_owing(self, for_s: float, reason: str) -> None:
        """Reconnect if a request that was queued at least `for_s` ago is written and not answered."""
        if self._written:
            since = self._written[0][2] - self._timeout_s
            if asyncio.get_running_loop().time() - since >= for_s:
                self._link.redial(reason)

    # -- out ---------------------------------------------------------------------------------------------------

    def _queue(self, data: bytes, answers: int = 1) -> "asyncio.Future[Any]":
        """Queue one request; never waits. If the future is cancelled before the request was written, it is not sent."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        refusal = self._refusal()
        if refusal is not None:
            fail(future, refusal)
        else:
            self._append(future, data, answers)
        return future

    def _refusal(self) -> BrokerUnavailable | None:
        """Return why no request is accepted now; None = one is. Counts it."""
        if self._is_stopped:
            return BrokerUnavailable("the connection is closed", is_undone=True)
        if self._pending_count() >= self._queue_max or self._pending_bytes >= self._queue_max_bytes:
            self._refused.inc()
            return BrokerUnavailable("too many requests to Redis are pending", is_undone=True)
        return None

    def _pending_count(self) -> int:
        return len(self._waiting) + len(self._written)

    def _append(self, future: "asyncio.Future[Any]", data: bytes, answers: int = 1) -> None:
        self._waiting.append((future, data, asyncio.get_running_loop().time() + self._timeout_s, answers))
        self._pending_bytes += len(data)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._timer is None and self._waiting:
            self._arm()
        wire = self._link.wire
        if wire is None or wire.is_congested or not self._waiting:
            return  # `_on_up` or `on_writable` will call this again
        waiting, self._waiting = self._waiting, deque()
        written = []
        for request in waiting:
            if request[0].done():  # cancelled: do not send it
                self._pending_bytes -= len(request[1])
            else:
                written.append(request[1])
                self._written.append(request)
        wire.write(b"".join(written))

    # -- the wire ----------------------------------------------------------------------------------------------

    def _on_up(self, wire: RespConnection) -> None:
        wire.consume = self._consume
        wire.on_writable = self._flush
        self._flush()

    def _on_down(self, error: ConnectionLost) -> None:
        self._fail(self._written, f"outcome unknown: {error}")

    def _consume(self, gets: Gets) -> None:
        """Read all complete answers. Raises WireError: an answer is unexpected; the connection is then closed."""
        raise NotImplementedError

    def _answered(self) -> "asyncio.Future[Any]":
        """Remove the oldest request, which is completely answered; returns its future."""
        future, data, _, _ = self._written.popleft()
        self._pending_bytes -= len(data)
        return future

    # -- deadlines ---------------------------------------------------------------------------------------------

    def _arm(self, delay_s: float = 0.0) -> None:
        head = self._written or self._waiting
        if head:
            loop = asyncio.get_running_loop()
            self._timer_due = max(head[0][2], loop.time() + delay_s)
            self._timer = loop.call_at(self._timer_due, self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if now - self._timer_due > LATE_S:  # the loop was blocked; answers that have arrived are read after this call
            self._arm(LATE_S)
            return
        if self._written and self._written[0][2] <= now:
            self._link.redial(f"a request was not answered within {self._timeout_s:g} s")
        expired: deque[Request] = deque()
        while self._waiting and self._waiting[0][2] <= now:
            expired.append(self._waiting.popleft())
        self._fail(expired, f"no connection within {self._timeout_s:g} s")
        self._arm()

    def _fail(self, requests: deque[Request], what: str) -> None:
        while requests:
            future, data, _, _ = requests.popleft()
            self._pending_bytes -= len(data)
            fail(future, BrokerUnavailable(what))


async def all_ended(works: Iterable[Awaitable[_T]]) -> list[_T]:
    """Await all concurrently until each has ended. Then raises the first error, so nothing is still running."""
    ended = await asyncio.gather(*works, return_exceptions=True)
    for each in ended:
        if isinstance(each, BaseException):
            raise each
    return ended  # type: ignore[return-value]  # none of them is an error


def fail(future: "asyncio.Future[Any]", error: BrokerUnavailable) -> None:
    """Set an error on a future that callers may ignore."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # mark it as retrieved, so that asyncio does not log it if the future is ignored
