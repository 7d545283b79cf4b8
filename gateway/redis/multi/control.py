"""SpreadControlLog: the control orders in several independent Redis. Each has the whole list.

Rules:
- An order is given to every Redis, and counts as stored when one has it: a Redis that does not answer delays nothing.
  Every node reads all lists, so it gets the order as long as one of these Redis reaches it.
- Every Redis reports an order. The receiver carries it out once, as with one Redis.
- A node writes its result to every Redis, and results are read from those that answer in time.
- If a node may have missed orders of one Redis, another one that it has read since they were removed had them too.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from snorky.gateway.contracts.control import KEEP_S, ControlOrder, OnOrders
from snorky.gateway.errors import LimitExceeded
from snorky.gateway.redis.control import RedisControlLog

__all__ = ["SpreadControlLog"]

LATE_S: Final = 0.1  # how long the results of one Redis wait for those of the others

_T = TypeVar("_T")


class SpreadControlLog:
    """Implements `contracts.control.ControlLog`. logs: one for each Redis, of the same node. keep_s: of an order."""

    def __init__(self, logs: Sequence[RedisControlLog], *, keep_s: float = KEEP_S) -> None:
        self.spread_s = max(log.spread_s for log in logs)
        self._logs = logs
        self._keep_s = keep_s
        self._tasks: set[asyncio.Task[Any]] = set()  # until each Redis has answered, or its timeout is over

    def begin(self, on_orders: OnOrders, on_missed: Callable[[], None]) -> None:
        """See ControlLog."""
        for log in self._logs:
            log.begin(on_orders, partial(self._on_missed, log, on_missed))

    async def stop(self) -> None:
        """See ControlLog."""
        await asyncio.gather(*(log.stop() for log in self._logs))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def add(self, order: ControlOrder) -> frozenset[str]:
        """See ControlLog; returns when one Redis has the order."""
        return (await self._answers([log.add(order) for log in self._logs]))[0]

    async def acknowledge(self, order_id: str, result: bytes) -> None:
        """See ControlLog; returns when one Redis has the result."""
        await self._answers([log.acknowledge(order_id, result) for log in self._logs])

    async def acknowledged(self, order_id: str) -> dict[str, bytes]:
        """See ControlLog."""
        found: dict[str, bytes] = {}
        for results in await self._answers([log.acknowledged(order_id) for log in self._logs], late_s=LATE_S):
            found |= results
        return found

    def _on_missed(self, log: RedisControlLog, on_missed: Callable[[], None]) -> None:
        """Pass it on unless another Redis was read recently: it had the removed orders too."""
        known_s = asyncio.get_running_loop().time() - self._keep_s
        if not any(
            other.read_at_s is not None and other.read_at_s > known_s for other in self._logs if other is not log
        ):
            on_missed()

    async def _answers(self, works: Iterable[Coroutine[Any, Any, _T]], *, late_s: float | None = None) -> list[_T]:
        """Ask every Redis; return the first answer and those that are there too. Raises the error if all fail.

        late_s: wait this long for the other answers, and cancel them then; None: they go on without being awaited.
        """
        tasks = {asyncio.get_running_loop().create_task(work) for work in works}
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._on_ended)
        ended, pending = set[asyncio.Task[_T]](), tasks
        while pending and not any(task.exception() is None for task in ended):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            ended |= done
        if pending and late_s is not None:
            done, pending = await asyncio.wait(pending, timeout=late_s)
            ended |= done
            for task in pending:
                task.cancel()
        problems = [error for task in ended if (error := task.exception()) is not None]
        if len(problems) == len(ended):
            raise next((error for error in problems if isinstance(error, LimitExceeded)), problems[0])
        return [task.result() for task in ended if task.exception() is None]

    def _on_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: nobody may wait for it any more
