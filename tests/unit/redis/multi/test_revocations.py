"""When reports of several Redis count as the same entry; over lists whose reports the test makes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from snorky.gateway.contracts.revocations import Kind, LocalRevocations, Revocation, Watcher
from snorky.gateway.redis.multi.revocations import SpreadRevocations
from snorky.gateway.redis.revocations import IDLE_S, INTERVAL_S

BOB = Revocation(Kind.DISCONNECT, "bob", 1.0)


class FakeList(LocalRevocations):
    """The list of one Redis. The test reports its entries."""

    async def begin(self, watcher: Watcher) -> None:
        self.report = watcher


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def spread(clock: Clock) -> AsyncIterator[tuple[list[FakeList], list[Revocation]]]:
    lists: list[Any] = [FakeList(), FakeList()]
    seen: list[Revocation] = []
    spread_list = SpreadRevocations(lists, clock=clock)
    await spread_list.begin(seen.append)
    yield lists, seen
    await spread_list.stop()


async def test_an_entry_that_an_idle_node_reads_later_from_another_redis_is_reported_once() -> None:
    clock = Clock()
    async with spread(clock) as (lists, seen):
        lists[0].report(BOB)
        clock.now_s += IDLE_S + 2 * INTERVAL_S  # it looks once in each interval whether a read is due
        lists[1].report(BOB)
        assert seen == [BOB]


async def test_a_later_entry_that_only_the_redis_that_read_first_reports_is_not_lost() -> None:
    clock = Clock()
    async with spread(clock) as (lists, seen):
        lists[0].report(BOB)
        clock.now_s += IDLE_S
        lists[1].report(BOB)
        lists[0].report(BOB)
        assert seen == [BOB, BOB]
