"""Publisher against a scripted server: pipelining, order, bounds, deadlines, unknown outcomes."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from snorky.gateway.redis.pubsub.publisher import Publisher, PublishRefused
from snorky.gateway.redis.target import target_from_url
from tests.support.servers.scripted_redis import ScriptedRedis


@asynccontextmanager
async def publisher(
    redis: ScriptedRedis, *, metrics: Metrics | None = None, timeout_s: float = 5.0, **bounds: int
) -> AsyncIterator[Publisher]:
    instance = Publisher(
        target_from_url(redis.url),
        client_name="test",
        metrics=metrics or Metrics(),
        timeouts=RedisTimeouts(publish_timeout_s=timeout_s),
        **bounds,
    )
    instance.start()
    try:
        async with asyncio.timeout(30.0):  # an answer that never comes must fail a test, not hang it
            yield instance
    finally:
        await instance.stop()


async def test_each_publication_gets_its_own_answer() -> None:
    async with ScriptedRedis() as redis, publisher(redis) as speaking:
        futures = [speaking.publish(b"c", b"%d" % number) for number in range(4)]
        for number in range(4):
            assert await redis.next(b"PUBLISH") == (b"PUBLISH", b"c", b"%d" % number)
        redis.send(b":7\r\n-NOPERM no\r\n:0\r\n")
        assert await futures[0] == 7
        with pytest.raises(PublishRefused) as refusal:
            await futures[1]
        assert refusal.value.what == "NOPERM no"
        assert await futures[2] == 0
        assert not futures[3].done()
        redis.send(b":1\r\n")
        assert await futures[3] == 1


async def test_publications_of_one_tick_are_one_write() -> None:
    async with ScriptedRedis(lambda command: b":1\r\n") as redis, publisher(redis) as speaking:
        await speaking.publish(b"c", b"first")
        writes = []
        wire: Any = speaking._link.wire
        write = wire.write
        wire.write = lambda data: (writes.append(data), write(data))
        futures = [speaking.publish(b"c", b"%d" % number) for number in range(1000)]
        assert await asyncio.gather(*futures) == [1] * 1000
        assert len(writes) == 1


async def test_beyond_its_bound_it_refuses_at_once_and_counts() -> None:
    metrics = Metrics()
    async with ScriptedRedis() as redis:
        async with publisher(redis, metrics=metrics, queue_max=3) as speaking:
            futures = [speaking.publish(b"c", b"x") for _ in range(5)]
            assert [future.done() for future in futures] == [False, False, False, True, True]
        assert all(isinstance(future.exception(), BrokerUnavailable) for future in futures)
        async with publisher(redis, metrics=metrics, queue_max_bytes=2_000) as speaking:
            futures = [speaking.publish(b"c", b"x" * 2_500) for _ in range(2)]
            assert [future.done() for future in futures] == [False, True]
    assert metrics.registry.get_sample_value("snorky_drops_total", {"reason": "publish_queue_full"}) == 3


async def test_answers_failures_and_cancellations_release_their_space() -> None:
    async with ScriptedRedis() as redis, publisher(redis, queue_max=1, timeout_s=0.1) as speaking:
        answered = speaking.publish(b"c", b"answered")
        await redis.next(b"PUBLISH")
        redis.send(b":1\r\n")
        assert await answered == 1
        with pytest.raises(BrokerUnavailable):
            await speaking.publish(b"c", b"unanswered")
        withdrawn = speaking.publish(b"c", b"withdrawn")
        withdrawn.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not speaking.publish(b"c", b"room again").done() or speaking._link.wire is None
        await speaking.stop()
        assert speaking._pending_bytes == 0
        assert not speaking._waiting and not speaking._written


async def test_a_publication_cancelled_before_it_was_written_is_not_sent() -> None:
    async with ScriptedRedis() as redis, publisher(redis) as speaking:
        withdrawn = speaking.publish(b"c", b"withdrawn")
        withdrawn.cancel()
        kept = speaking.publish(b"c", b"kept")
        assert await redis.next(b"PUBLISH") == (b"PUBLISH", b"c", b"kept")
        redis.send(b":1\r\n")
        assert await kept == 1


async def test_a_publication_cancelled_after_it_was_written_does_not_shift_the_answers() -> None:
    async with ScriptedRedis() as redis, publisher(redis) as speaking:
        withdrawn, kept = speaking.publish(b"c", b"1"), speaking.publish(b"c", b"2")
        await redis.next(b"PUBLISH")
        await redis.next(b"PUBLISH")
        withdrawn.cancel()
        redis.send(b":1\r\n:2\r\n")
        assert await kept == 2


async def test_without_an_answer_in_time_it_fails_and_the_connection_is_replaced() -> None:
    async with ScriptedRedis() as redis, publisher(redis, timeout_s=0.5) as speaking:
        with pytest.raises(BrokerUnavailable):
            await speaking.publish(b"c", b"unanswered")
        await redis.next(b"PUBLISH")
        redis.send(b":99\r\n")  # too late, on a connection that is closed
        later = speaking.publish(b"c", b"later")
        assert await redis.next(b"PUBLISH") == (b"PUBLISH", b"c", b"later")
        redis.send(b":1\r\n")
        assert await later == 1
        assert redis.connections == 2


async def test_written_publications_are_not_sent_again_and_unwritten_ones_are() -> None:
    async with ScriptedRedis() as redis, publisher(redis) as speaking:
        written = speaking.publish(b"c", b"written")
        await redis.next(b"PUBLISH")
        redis.drop()
        with pytest.raises(BrokerUnavailable):
            await asyncio.wait_for(written, 1.0)  # at once, not by its deadline
        waiting = speaking.publish(b"c", b"waiting")
        assert await redis.next(b"PUBLISH") == (b"PUBLISH", b"c", b"waiting")
        redis.send(b":1\r\n")
        assert await waiting == 1


@pytest.mark.parametrize("garbage", [b"+OK\r\n", b"*0\r\n", b"$1\r\nx\r\n", b"nonsense\r\n", b":1\r\n:1\r\n"])
async def test_an_invalid_answer_fails_open_publications_and_replaces_the_connection(garbage: bytes) -> None:
    async with ScriptedRedis() as redis, publisher(redis) as speaking:
        doubtful = speaking.publish(b"c", b"doubtful")
        await redis.next(b"PUBLISH")
        redis.send(garbage)
        await asyncio.wait({doubtful}, timeout=1.0)
        assert doubtful.done()
        assert doubtful.exception() is not None or garbage.startswith(b":")
        sound = speaking.publish(b"c", b"sound")
        await redis.next(b"PUBLISH")
        redis.send(b":5\r\n")
        assert await sound == 5
        assert redis.connections == 2


async def test_an_unread_failure_is_not_reported_by_the_loop() -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    async with ScriptedRedis() as redis, publisher(redis, timeout_s=0.05) as speaking:
        speaking.publish(b"c", b"ignored")
        await redis.next(b"PUBLISH")
        redis.drop()
        await asyncio.wait({speaking.publish(b"c", b"ignored too")})
    speaking.publish(b"c", b"after the end")
    gc.collect()
    await asyncio.sleep(0)
    assert reports == []


async def test_its_connection_is_closed_only_if_an_answer_is_overdue() -> None:
    async with ScriptedRedis(lambda command: b":1\r\n" if command[2] == b"answered" else None) as redis:
        async with publisher(redis) as speaking:
            await speaking.publish(b"c", b"answered")
            speaking.redial_if_owing(0.0, "no answer is outstanding")
            owed = speaking.publish(b"c", b"owed")
            await redis.next(b"PUBLISH")
            await redis.next(b"PUBLISH")
            speaking.redial_if_owing(60.0, "not for long")
            assert not owed.done()
            speaking.redial_if_owing(0.0, "for long")
            with pytest.raises(BrokerUnavailable):
                await owed
            await speaking.publish(b"c", b"answered")
            assert redis.connections == 2
