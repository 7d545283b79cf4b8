"""The common part of pipelines, as far as the tests of publisher and commander do not cover it."""

import asyncio

import pytest

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.pipeline import all_ended


async def test_an_error_is_raised_only_after_all_concurrent_tasks_ended() -> None:
    ended = []

    async def work(number: int) -> int:
        for _ in range(number):
            await asyncio.sleep(0)
        ended.append(number)
        if number == 1:
            raise BrokerUnavailable("no")
        return number

    with pytest.raises(BrokerUnavailable):
        await all_ended(map(work, (3, 1, 5)))
    assert ended == [1, 3, 5]
    assert await all_ended(map(work, (3, 2))) == [3, 2]


async def test_cancellation_of_a_caller_cancels_what_it_awaits() -> None:
    never = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await never

    waiting = asyncio.ensure_future(all_ended([work(), work()]))
    for _ in range(3):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert never.cancelled()
