"""Numbers: the same sequence published to every channel, and what each client received of it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from snorky.client.aio import Publisher

__all__ = ["CHANNELS", "DEADLINE_S", "Crowd", "Numbers", "Tally", "channel_of", "publishing", "tally"]

CHANNELS = 6
DEADLINE_S = 30.0
PACE_S = 0.01  # between two rounds
SETTLING = 50  # rounds before the block of `publishing` begins, and after it


def channel_of(client: int) -> str:
    """Name the channel of the client with that number; it keeps a history, see `tests.support.processes.fleet`."""
    return f"kept:{client % CHANNELS}"


@dataclass(frozen=True, slots=True)
class Tally:
    """Deliveries of the numbers, counted over all clients. first: the first client with a fault."""

    clients: int = 0
    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    gaps: int = 0
    first: str = ""

    @property
    def is_whole(self) -> bool:
        """Every client has received everything, once and in order, without a reported gap."""
        return not (self.lost or self.duplicated or self.out_of_order or self.gaps)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.clients + other.clients,
            self.delivered + other.delivered,
            self.lost + other.lost,
            self.duplicated + other.duplicated,
            self.out_of_order + other.out_of_order,
            self.gaps + other.gaps,
            self.first or other.first,
        )

    def __str__(self) -> str:
        faults = f"{self.lost} lost, {self.duplicated} duplicated, {self.out_of_order} out of order, {self.gaps} gaps"
        return f"{self.delivered:,} deliveries to {self.clients:,} clients: {faults}{self.first and '; ' + self.first}"


def tally(client: str, heard: Sequence[int], count: int) -> Tally:
    """Compare what one client received with the numbers below count."""
    distinct = set(heard)
    lost = set(range(count)) - distinct
    duplicated = len(heard) - len(distinct)
    out_of_order = sum(later < earlier for earlier, later in pairwise(heard))
    first = f"{client} lost {sorted(lost)[:3]}..." if lost or duplicated or out_of_order else ""
    return Tally(1, len(heard), len(lost), duplicated, out_of_order, first=first)


class Crowd(Protocol):
    """Clients that receive numbers."""

    async def tally(self, count: int) -> Tally:
        """Wait until every client has received that many numbers, or too long; return the tally."""


class Numbers:
    """Publishes. count: rounds that Redis has; each is one number to every channel. tally: set at the end."""

    def __init__(self, redis_url: str, *, pace_s: float) -> None:
        self.count = 0
        self.tally = Tally()
        self._redis_url = redis_url
        self._pace_s = pace_s
        self._is_over = False
        self._reached: dict[int, asyncio.Event] = {}

    async def run(self) -> None:
        """Publish until `end`."""
        channels = [channel_of(client) for client in range(CHANNELS)]
        async with Publisher(self._redis_url, timeout_s=DEADLINE_S, concurrency_max=CHANNELS) as publisher:
            while not self._is_over:
                await asyncio.gather(*[publisher.publish(channel, self.count) for channel in channels])
                self.count += 1
                if self.count in self._reached:
                    self._reached.pop(self.count).set()
                await asyncio.sleep(self._pace_s)

    async def more(self, rounds: int) -> None:
        """Wait until that many more rounds were published."""
        async with asyncio.timeout(2 * DEADLINE_S + rounds * self._pace_s):
            await self._reached.setdefault(self.count + rounds, asyncio.Event()).wait()

    def end(self) -> None:
        """Make this round the last one."""
        self._is_over = True


@asynccontextmanager
async def publishing(redis_url: str, *crowds: Crowd, pace_s: float = PACE_S) -> AsyncIterator[Numbers]:
    """Publish while the block runs. Raises AssertionError: a client did not receive everything, once and in order."""
    numbers = Numbers(redis_url, pace_s=pace_s)
    running = asyncio.ensure_future(numbers.run())
    try:
        await numbers.more(SETTLING)
        yield numbers
        await numbers.more(SETTLING)
        numbers.end()
        await running
    finally:
        running.cancel()
        await asyncio.wait([running])
    for crowd in crowds:
        numbers.tally += await crowd.tally(numbers.count)
    assert numbers.tally.is_whole, str(numbers.tally)
