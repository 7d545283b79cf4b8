"""CommandPipeline against a scripted server: groups, order, bounds, deadlines, unknown outcomes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hiredis
import pytest

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.commands import CommandPipeline
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.target import target_from_url
from tests.support.servers.scripted_redis import ScriptedRedis


@asynccontextmanager
async def commander(
    redis: ScriptedRedis, *, metrics: Metrics | None = None, timeout_s: float = 5.0, db: int = 0, **bounds: int
) -> AsyncIterator[CommandPipeline]:
    instance = CommandPipeline(
        target_from_url(redis.url.removesuffix("0") + str(db)),
        role="directory",
        client_name="test",
        metrics=metrics or Metrics(),
        timeout_s=timeout_s,
        dial_timeout_s=2.0,
        **bounds,
    )
    instance.start()
    try:
        async with asyncio.timeout(30.0):  # an answer that never comes must fail a test, not hang it
            yield instance
    finally:
        await instance.stop()


def group(*words: bytes) -> list[bytes]:
    return [command(b"ECHO", word) for word in words]


async def test_each_group_gets_its_own_answers_errors_among_them() -> None:
    async with ScriptedRedis() as redis, commander(redis) as sending:
        one, two = sending.send(group(b"a", b"b")), sending.send(group(b"c"))
        for word in (b"a", b"b", b"c"):
            assert await redis.next(b"ECHO") == (b"ECHO", word)
        redis.send(b"*2\r\n:1\r\n$-1\r\n-ERR no\r\n")
        first, second = await one
        assert first == [1, None] and isinstance(second, hiredis.ReplyError)
        assert not two.done()
        redis.send(b"$1\r\nx\r\n")
        assert await two == [b"x"]


async def test_written_commands_are_not_sent_again_and_unwritten_ones_are() -> None:
    async with ScriptedRedis() as redis, commander(redis) as sending:
        written = sending.send(group(b"a", b"b"))
        await redis.next(b"ECHO")
        await redis.next(b"ECHO")
        redis.send(b":1\r\n")  # half an answer
        await asyncio.sleep(0)
        redis.drop()
        with pytest.raises(BrokerUnavailable):
            await written
        later = sending.send(group(b"c"))
        assert await redis.next(b"ECHO") == (b"ECHO", b"c")
        redis.send(b":3\r\n")
        assert await later == [3]


async def test_a_call_without_a_timely_answer_fails_and_closes_the_connection() -> None:
    async with ScriptedRedis() as redis, commander(redis, timeout_s=0.2) as sending:
        late = sending.send(group(b"a"))
        await redis.next(b"ECHO")
        with pytest.raises(BrokerUnavailable):
            await late
        again = sending.send(group(b"b"))
        assert await redis.next(b"ECHO") == (b"ECHO", b"b")
        redis.send(b":1\r\n")
        assert await again == [1]
        assert redis.connections == 2


async def test_the_queue_is_bounded_and_its_bound_counted() -> None:
    metrics = Metrics()
    async with ScriptedRedis() as redis, commander(redis, metrics=metrics, queue_max=2) as sending:
        kept = [sending.send(group(b"a")) for _ in range(2)]
        with pytest.raises(BrokerUnavailable):
            await sending.send(group(b"b"))
        assert metrics.registry.get_sample_value("snorky_limit_hits_total", {"limit": "redis_commands"}) == 1
        for _ in kept:
            await redis.next(b"ECHO")
        redis.send(b":1\r\n:2\r\n")
        assert await asyncio.gather(*kept) == [[1], [2]]


async def test_the_bytes_that_wait_are_bounded_too_and_answers_make_room() -> None:
    async with ScriptedRedis() as redis, commander(redis, queue_max_bytes=1_500) as sending:
        kept = [sending.send(group(b"a" * 900)) for _ in range(2)]
        with pytest.raises(BrokerUnavailable):
            await sending.send(group(b"b" * 900))
        for _ in kept:
            await redis.next(b"ECHO")
        redis.send(b":1\r\n:2\r\n")
        assert await asyncio.gather(*kept) == [[1], [2]]
        assert not sending.send(group(b"c" * 900)).done()


async def test_commands_cancelled_before_they_are_written_are_not_sent() -> None:
    async with ScriptedRedis() as redis, commander(redis) as sending:
        sending.send(group(b"a")).cancel()
        kept = sending.send(group(b"b"))
        assert await redis.next(b"ECHO") == (b"ECHO", b"b")
        redis.send(b":1\r\n")
        assert await kept == [1]


async def test_the_database_of_the_url_is_selected_first() -> None:
    async with ScriptedRedis() as redis, commander(redis, db=3) as sending:
        asked = sending.send(group(b"a"))
        assert await redis.next(b"SELECT") == (b"SELECT", b"3")
        await redis.next(b"ECHO")
        redis.send(b"+OK\r\n:1\r\n")
        assert await asked == [1]


async def test_an_unexpected_answer_ends_the_connection() -> None:
    async with ScriptedRedis() as redis, commander(redis) as sending:
        asked = sending.send(group(b"a"))
        await redis.next(b"ECHO")
        redis.send(b":1\r\n:2\r\n")
        assert await asked == [1]
        asked = sending.send(group(b"b"))
        await redis.next(b"ECHO")
        redis.send(b":3\r\n")
        assert await asked == [3], "not the answer that was too many"


async def test_after_the_stop_nothing_is_sent() -> None:
    async with ScriptedRedis() as redis, commander(redis) as sending:
        pending = sending.send(group(b"a"))
        await redis.next(b"ECHO")
        await sending.stop()
        for future in (pending, sending.send(group(b"b"))):
            with pytest.raises(BrokerUnavailable):
                await future
