"""Pace: a portion of work in each iteration of the loop, in order."""

import asyncio
from itertools import pairwise

from snorky.gateway.connection.pace import Pace


async def test_work_begins_in_portions_and_in_order() -> None:
    pace, done = Pace(3), list[int]()
    for number in range(8):
        pace.run(lambda number=number: done.append(number))  # type: ignore[misc]
    found = [len(done)]
    while len(done) < 8:
        await asyncio.sleep(0)
        found.append(len(done))
    assert found == [3, 6, 8]
    assert done == list(range(8)) and len(pace) == 0


async def test_what_waits_comes_before_what_is_new() -> None:
    pace, done = Pace(3), list[str]()
    for name in "abc":
        pace.run(lambda name=name: done.append(name))  # type: ignore[misc]
    pace.run(lambda: pace.run(lambda: done.append("from the line")))
    pace.run(lambda: done.append("d"))
    while len(done) < 5:  # noqa: ASYNC110 - a portion in each iteration
        await asyncio.sleep(0)
    assert done == ["a", "b", "c", "d", "from the line"]


async def test_coroutines_continue_in_portions() -> None:
    pace, done = Pace(2), list[int]()

    async def work(number: int) -> None:
        await pace.turn()
        done.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(7)]
    found = set()
    while len(done) < 6:
        before = len(done)
        await asyncio.sleep(0)
        found.add(len(done) - before)
        tasks[3].cancel()  # it waits, and takes no place
    assert max(found) == 2 and sorted(done) == [0, 1, 2, 4, 5, 6]
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_each_iteration_has_a_new_portion() -> None:
    pace = Pace(2)
    for _ in range(5):
        for _ in range(2):
            await asyncio.wait_for(pace.turn(), 30.0)
        assert len(pace) == 0
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_tick_comes_before_all_that_has_waited() -> None:
    pace, seen = Pace(1), list[str]()
    pace.tick = lambda: seen.append("tick")

    async def wait(name: str) -> None:
        await pace.turn()
        seen.append(name)

    pace.run(lambda: seen.append("at once"))
    pace.run(lambda: seen.append("a"))
    tasks = [asyncio.create_task(wait(name)) for name in "bc"]
    await asyncio.gather(*tasks)
    assert [each for each in seen if each != "tick"] == ["at once", "a", "b", "c"]
    assert {before for before, after in pairwise(seen) if after in ("a", "b", "c")} == {"tick"}
    assert seen.count("tick") == 5, "one more for each coroutine, when it is woken"
