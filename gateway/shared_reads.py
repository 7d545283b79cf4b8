"""Shared reads: callers that want the same thing at the same time share one read of it.

Rules:
- A caller gets what was read after it asked, never anything older: callers that ask while a read is under way share
  the next one.
- Reads of one key follow each other, one at a time. A read that took long is followed by a pause, `rest` times as
  long (REST_MAX_S at most), so that a crowd that asks without end does not keep the node busy.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

__all__ = ["SharedReads"]

REST_MAX_S: Final = 0.5

_T = TypeVar("_T")


class SharedReads(Generic[_T]):
    """Reads by key. read: makes one read. rest: see the rules."""

    def __init__(self, read: Callable[[str], Awaitable[_T]], *, name: str, rest: float = 0.0) -> None:
        self._read = read
        self._name = name
        self._rest = rest
        self._present: dict[str, asyncio.Task[_T]] = {}  # under way, or resting behind it
        self._next: dict[str, asyncio.Task[_T]] = {}  # begin when those have ended
        self._took_s: dict[str, float] = {}  # the last read, where the next one waits

    async def get(self, key: str) -> _T:
        """Read, or share a read that has not begun yet. Callers share the result. Raises what the read raised."""
        task = self._next.get(key)
        if task is None:
            before = self._present.get(key)
            task = asyncio.get_running_loop().create_task(self._run(key, before), name=self._name)
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # who waited may have gone
            (self._present if before is None else self._next)[key] = task
        return await asyncio.shield(task)

    async def stop(self) -> None:
        """End what is under way. Idempotent."""
        tasks = [*self._present.values(), *self._next.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: str, before: "asyncio.Task[_T] | None") -> _T:
        loop = asyncio.get_running_loop()
        if before is not None:
            await asyncio.wait((before,))
            await asyncio.sleep(min(self._rest * self._took_s.pop(key, 0.0), REST_MAX_S))
            self._present[key] = self._next.pop(key)  # from here on it is too late to share it
        began = loop.time()
        try:
            return await self._read(key)
        finally:
            if key in self._next:
                self._took_s[key] = loop.time() - began
            if self._present.get(key) is asyncio.current_task():
                del self._present[key]
