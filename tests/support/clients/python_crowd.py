"""PythonCrowd: clients of clients/python in this process, each recovering a channel of numbers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import reduce
from operator import add

from snorky.client.aio import Client, Message, Recovered, Subscription
from tests.support.clients.numbers import DEADLINE_S, Tally, channel_of, tally
from tests.support.processes.tools import eventually

__all__ = ["PythonCrowd", "running_python_crowd"]

OPENING = 50  # concurrently


class _Reader:
    """One subscription and its deliveries."""

    def __init__(self, subscription: Subscription) -> None:
        self.heard: list[int] = []
        self.gaps = 0
        self._subscription = subscription

    async def read(self) -> None:
        async for event in self._subscription:
            if isinstance(event, Message):
                self.heard.append(event.data)
            elif not (isinstance(event, Recovered) and event.is_recovered):
                self.gaps += 1


class PythonCrowd:
    """Made by `running_python_crowd`."""

    def __init__(self, readers: list[_Reader]) -> None:
        self._readers = readers

    async def tally(self, count: int) -> Tally:
        """See Crowd."""

        async def have_all_heard() -> bool:
            return all(len(reader.heard) >= count for reader in self._readers)

        with suppress(AssertionError):
            await eventually(have_all_heard, within_s=DEADLINE_S, what="all clients have received everything")
        each = enumerate(self._readers)
        tallies = [tally(f"Python client {number}", reader.heard, count) for number, reader in each]
        return reduce(add, tallies, Tally(gaps=sum(reader.gaps for reader in self._readers)))


@asynccontextmanager
async def running_python_crowd(url: str, *, count: int) -> AsyncIterator[PythonCrowd]:
    """Run clients until the block ends; all have subscribed when it begins."""
    async with AsyncExitStack() as stack:
        turns = asyncio.Semaphore(OPENING)

        async def opened(number: int) -> _Reader:
            async with turns:
                client = await stack.enter_async_context(Client(url, backoff_base_s=0.2, backoff_max_s=2.0))
                return _Reader(await client.subscribe(channel_of(number), recover=True).ready())

        async with asyncio.timeout(DEADLINE_S):
            readers = await asyncio.gather(*(opened(number) for number in range(count)))
        tasks = [asyncio.ensure_future(reader.read()) for reader in readers]
        try:
            yield PythonCrowd(readers)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):  # the exception that ended a reader; cancellation is none
                raise result
