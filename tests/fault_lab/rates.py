"""Rates: the growth of a counter, per second."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

__all__ = ["Rates", "sampling"]

BIN_S = 1.0


class Rates:
    """Samples of a counter: (time, value), oldest first."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []

    @property
    def total(self) -> float:
        """Total growth."""
        return self.samples[-1][1] - self.samples[0][1] if self.samples else 0.0

    @property
    def peak_per_s(self) -> float:
        """Highest rate over whole bins. A sample that came late makes its bin longer."""
        bins = [(later[0] - earlier[0], later[1] - earlier[1]) for earlier, later in pairwise(self.samples)]
        return max((grown / max(lasted_s, BIN_S) for lasted_s, grown in bins), default=0.0)


@asynccontextmanager
async def sampling(ask: Callable[[], Awaitable[float]]) -> AsyncIterator[Rates]:
    """Sample a counter at the start, each second, and at the end of the block."""
    rates = Rates()
    loop = asyncio.get_running_loop()

    async def sample() -> None:
        rates.samples.append((loop.time(), await ask()))

    async def for_ever() -> None:
        due_s = loop.time()
        while True:
            due_s += BIN_S
            await asyncio.sleep(due_s - loop.time())
            await sample()

    await sample()
    task = asyncio.ensure_future(for_ever())
    try:
        yield rates
    finally:
        task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]
    await sample()
