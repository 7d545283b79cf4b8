"""gateway/connection/deadlines.py: deadlines pass once, in time, also after a stall."""

import asyncio
import time

from snorky.gateway.connection.deadlines import TICK_S, Deadlines


async def test_a_deadline_passes_once_within_a_tick() -> None:
    passed: list[tuple[str, float]] = []
    began_s = time.monotonic()
    deadlines: Deadlines[str] = Deadlines(lambda what: passed.append((what, time.monotonic() - began_s)))
    deadlines.add(0.3, "b")
    deadlines.add(0.0, "a")
    discarded = deadlines.add(0.1, "never")
    deadlines.discard(discarded, "never")
    deadlines.discard(discarded, "never")
    deadlines.discard(None, "never")
    assert len(deadlines) == 2
    async with asyncio.timeout(30.0):
        while len(passed) < 2:  # noqa: ASYNC110 - a callback's state, with no event
            await asyncio.sleep(0.01)
    assert [what for what, _ in passed] == ["a", "b"] and passed[1][1] >= 0.3
    assert not len(deadlines) and deadlines._timer is None, "no timer without deadlines"


async def test_what_is_due_passes_before_the_timer_after_a_stall() -> None:
    passed: list[str] = []
    deadlines: Deadlines[str] = Deadlines(passed.append)
    deadlines.add(0.1, "a")
    deadlines.add(3600.0, "later")
    deadlines.catch_up()
    assert not passed, "the timer is not late"
    time.sleep(3 * TICK_S)  # noqa: ASYNC251 - the loop is stalled
    deadlines.catch_up()
    assert passed == ["a"] and len(deadlines) == 1
    deadlines.catch_up()
    assert passed == ["a"]
    deadlines.stop()
    assert not len(deadlines)


async def test_a_deadline_set_by_another_one_counts() -> None:
    passed: list[int] = []

    def on_due(number: int) -> None:
        passed.append(number)
        if number < 3:
            deadlines.add(0.0, number + 1)

    deadlines: Deadlines[int] = Deadlines(on_due)
    deadlines.add(0.0, 1)
    async with asyncio.timeout(30.0):
        while len(passed) < 3:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    assert passed == [1, 2, 3]
