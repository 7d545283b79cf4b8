"""Commander: sends commands to Redis, pipelined, over one connection, and gives each group its answers.

Rules (those of `publisher`, for commands of any kind):
- Commands go out in the order they were given, and Redis answers in that order: what is given later happens later.
- What was written and not answered is never sent again: it may have happened. It fails when its connection does.
- Memory is bounded; every group is answered by its deadline, which is in the order of the queue.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from gateway.errors import BrokerUnavailable
from gateway.metrics import Metrics
from gateway.redis.link import Link
from gateway.redis.target import RedisTarget
from gateway.redis.wire import Gets, Wire, WireError

__all__ = ["Commander"]

QUEUE_MAX = 50_000  # groups; a node of 10,000 connections that all come at once needs as many
LATE_S = 0.1


class _Group:
    """Commands that go out together. answers: what has come so far."""

    __slots__ = ("answers", "count", "data", "due", "future")

    def __init__(self, future: "asyncio.Future[list[Any]]", data: bytes, count: int, due: float) -> None:
        self.future = future
        self.data = data
        self.count = count
        self.due = due  # loop time
        self.answers: list[Any] = []


class Commander:
    """One connection for commands. role: for metrics and logs. timeout_s: from `send` to the last answer.

    on_up: to be set by who wants to know of each new connection. is_sharded: its server is one of a Cluster's.
    """

    is_sharded = False

    def __init__(
        self,
        target: RedisTarget,
        *,
        role: str,
        client_name: str,
        metrics: Metrics,
        timeout_s: float,
        dial_timeout_s: float,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self._db = target.db
        self._timeout_s = timeout_s
        self._queue_max = queue_max
        self._limited = metrics.limited.labels("redis_commands")
        self.on_up: Callable[[], None] | None = None
        self._link = Link(
            target,
            role=role,
            name=client_name,
            on_up=self._on_up,
            on_down=self._on_down,
            metrics=metrics,
            dial_timeout_s=dial_timeout_s,
        )
        self._waiting: deque[_Group] = deque()  # not written yet
        self._written: deque[_Group] = deque()  # written, not wholly answered
        self._unasked = 0  # answers to come that are nobody's: of SELECT
        self._is_flush_due = False
        self._is_stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def start(self) -> None:
        """Begin to connect. Call once, on the event loop that all else is called on."""
        self._link.start()

    async def stop(self) -> None:
        """End the connection; what is pending fails. Idempotent."""
        self._is_stopped = True
        await self._link.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._fail(self._waiting, "the directory is stopped")

    def send(self, commands: Sequence[bytes], *, in_order: bool = True) -> "asyncio.Future[list[Any]]":
        """Queue a group of commands, each as `wire.command` spells it; never waits. in_order: it always is.

        The future: one answer for each, `hiredis.ReplyError` among them; or BrokerUnavailable: not known what
        happened. Cancelled before it was written, it is not sent.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        if self._is_stopped:
            _fail(future, "the directory is stopped")
        elif len(self._waiting) + len(self._written) >= self._queue_max:
            self._limited.inc()
            _fail(future, "too many commands are pending")
        else:
            group = _Group(future, b"".join(commands), len(commands), loop.time() + self._timeout_s)
            self._waiting.append(group)
            if not self._is_flush_due:
                self._is_flush_due = True
                loop.call_soon(self._flush)
        return future

    # -- out ---------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._timer is None and self._waiting:
            self._arm()
        wire = self._link.wire
        if wire is None or wire.is_congested or not self._waiting:
            return  # `_on_up` and `on_writable` come here again
        waiting, self._waiting = self._waiting, deque()
        sent = [group for group in waiting if not group.future.done()]  # cancelled: nobody wants it sent
        self._written.extend(sent)
        wire.write(b"".join([group.data for group in sent]))

    def _on_up(self, wire: Wire) -> None:
        wire.consume = self._consume
        wire.on_writable = self._flush
        self._unasked = 0
        if self._db:
            self._unasked = 1
            number = b"%d" % self._db
            wire.write(b"*2\r\n$6\r\nSELECT\r\n$%d\r\n%b\r\n" % (len(number), number))
        self._flush()
        if self.on_up is not None:
            self.on_up()

    def _on_down(self, error: WireError) -> None:
        self._fail(self._written, f"outcome unknown: {error}")

    # -- in ----------------------------------------------------------------------------------------------------

    def _consume(self, gets: Gets) -> None:
        while (reply := gets()) is not False:
            if self._unasked:
                self._unasked -= 1
                if reply != b"OK":
                    raise WireError(f"database not selected: {str(reply)[:200]}")
                continue
            if not self._written:
                raise WireError(f"unasked answer: {str(reply)[:200]}")
            group = self._written[0]
            group.answers.append(reply)
            if isinstance(reply, hiredis.ReplyError):
                self._link.on_refused(reply)
            if len(group.answers) == group.count:
                self._written.popleft()
                if not group.future.done():
                    group.future.set_result(group.answers)
        self._link.settle()

    # -- deadlines ---------------------------------------------------------------------------------------------

    def _arm(self, delay_s: float = 0.0) -> None:
        head = self._written or self._waiting
        if head:
            loop = asyncio.get_running_loop()
            self._timer_due = max(head[0].due, loop.time() + delay_s)
            self._timer = loop.call_at(self._timer_due, self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if now - self._timer_due > LATE_S:  # the loop stood still; the answers may be there, unread behind this call
            self._arm(LATE_S)
            return
        if self._written and self._written[0].due <= now:
            self._link.redial(f"a command was not answered within {self._timeout_s:g} s")
        expired: deque[_Group] = deque()
        while self._waiting and self._waiting[0].due <= now:
            expired.append(self._waiting.popleft())
        self._fail(expired, f"no connection within {self._timeout_s:g} s")
        self._arm()

    def _fail(self, groups: deque[_Group], what: str) -> None:
        while groups:
            _fail(groups.popleft().future, what)


def _fail(future: "asyncio.Future[list[Any]]", what: str) -> None:
    if not future.done():
        future.set_exception(BrokerUnavailable(what))
        future.exception()  # read once: who ignores the future hears nothing of it later either
