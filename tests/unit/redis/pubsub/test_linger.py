"""Linger: channels end in the order in which they were last given up."""

import asyncio

from snorky.gateway.redis.pubsub.heard import HeardChannel
from snorky.gateway.redis.pubsub.linger import Linger


def channels(*names: str) -> list[HeardChannel]:
    return [HeardChannel(name) for name in names]


async def test_channels_end_in_order_and_a_cancelled_one_does_not() -> None:
    ended: asyncio.Queue[HeardChannel] = asyncio.Queue()
    linger = Linger(0.02, on_end=ended.put_nowait)
    a, b, c = channels("a", "b", "c")
    for channel in (a, b, c, a):  # the time of a starts again
        linger.begin(channel)
    linger.cancel(b)
    assert a in linger and b not in linger
    async with asyncio.timeout(30.0):
        assert [await ended.get(), await ended.get()] == [c, a]
    assert a not in linger and ended.empty()


async def test_nothing_ends_after_it_was_stopped() -> None:
    ended: asyncio.Queue[HeardChannel] = asyncio.Queue()
    linger = Linger(0.0, on_end=ended.put_nowait)
    before, after = channels("before", "after")
    linger.begin(before)
    linger.stop()
    linger.begin(after)
    fence = Linger(0.0, on_end=ended.put_nowait)
    (last,) = channels("last")
    fence.begin(last)
    async with asyncio.timeout(30.0):
        assert await ended.get() is last
