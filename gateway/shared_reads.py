"""Shared reads: concurrent callers that need the same value share one read.

Rules:
- A caller gets a value that was read after its call, never an older one: callers during a read share
  the next one.
- Reads of one key run one after another. A long read is followed by a pause, `rest` times its
  duration (at most REST_MAX_S), so that many continuous callers cannot keep the node busy.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

__all__ = ["SharedReads"]

REST_MAX_S: Final = 0.5

_T = TypeVar("_T")


class SharedReads(Generic[_T]):
    """Reads by key. read: performs one read. rest: see the rules."""

    def __init__(self, read: Callable[[str], Awaitable[_T]], *, name: str, rest: float = 0.0) -> None:
        self._read = read
        self._name = name
        self._rest = rest
        self._present: dict[str, asyncio.Task[_T]] = {}  # reads in progress
        self._next: dict[str, asyncio.Task[_T]] = {}  # reads that begin after the present one and the pause
        self._took_s: dict[str, float] = {}  # duration of the last read, if another one waits

    async def get(self, key: str) -> _T:
        """Read, or share a read that has not begun yet. Callers share the result. Raises what `read` raises."""
        task = self._next.get(key)
        if task is None:
            before = self._present.get(key)
            task = asyncio.get_running_loop().create_task(self._run(key, before), name=self._name)
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # the callers may have gone
            (self._present if before is None else self._next)[key] = task
        return await asyncio.shield(task)

    async def stop(self) -> None:
        """Cancel all reads. Idempotent."""
        tasks = [*self._present.values(), *self._next.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: str, before: "asyncio.Task[_T] | None") -> _T:
        loop = asyncio.get_running_loop()
        if before is not None:
            await asyncio.wait((before,))
            await asyncio.sleep(min(self._rest * self._took_s.pop(key, 0.0), REST_MAX_S))
            self._present[key] = self._next.pop(key)  # from here on, new callers need another read
        began = loop.time()
        try:
            return await self._read(key)
        finally:
            if key in self._next:
                self._took_s[key] = loop.time() - began
            if self._present.get(key) is asyncio.current_task():
                del self._present[key]
