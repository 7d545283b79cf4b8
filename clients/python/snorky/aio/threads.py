"""Threads: where the blocking calls of one object run, made again in a process that was forked."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Threads"]

_T = TypeVar("_T")


class Threads:
    """Up to `threads_max` threads. They exist in the process that made them: a child made by a fork has its own."""

    def __init__(self, threads_max: int, name: str) -> None:
        self._threads_max = threads_max
        self._name = name
        self._make()

    async def run(self, function: Callable[[], _T]) -> _T:
        """Call a function in a thread and give what it returns, or raises."""
        if self._pid != os.getpid():  # an executor counts on threads that a child does not have, and waits for them
            self._make()
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def aclose(self) -> None:
        """Wait for what is under way; what waits is cancelled."""
        if self._pid == os.getpid():
            await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)

    def _make(self) -> None:
        self._executor = ThreadPoolExecutor(self._threads_max, thread_name_prefix=self._name)
        self._pid = os.getpid()
