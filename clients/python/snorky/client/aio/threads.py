"""Threads: run the blocking calls of one object; a forked process gets new ones."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Threads"]

_T = TypeVar("_T")


class Threads:
    """Up to `threads_max` threads. A forked child does not inherit them and creates its own."""

    def __init__(self, threads_max: int, name: str) -> None:
        self._threads_max = threads_max
        self._name = name
        self._make()

    async def run(self, function: Callable[[], _T]) -> _T:
        """Call a function in a thread; return its result or raise its error."""
        if self._pid != os.getpid():  # in a child the executor would wait for threads that do not exist there
            self._make()
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def aclose(self) -> None:
        """Wait for running calls and cancel waiting ones."""
        if self._pid == os.getpid():
            await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)

    def _make(self) -> None:
        self._executor = ThreadPoolExecutor(self._threads_max, thread_name_prefix=self._name)
        self._pid = os.getpid()
