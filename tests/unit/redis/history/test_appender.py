"""HistoryAppender: what a refusal proves when an earlier answer was lost; batches, their limits and faults."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from snorky.gateway.contracts.history import History
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.publication import Position
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from snorky.gateway.redis.history.appender import HistoryAppender
from snorky.gateway.redis.target import target_from_url
from tests.support.servers.scripted_redis import ScriptedRedis

OOM = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"


async def accept(redis: ScriptedRedis, appender: HistoryAppender) -> None:
    """Answer an appender's commands on each connection before it publishes."""
    await redis.next(b"EVAL")
    await redis.next(b"SCRIPT")
    redis.send(b"$3\r\nrun\r\n$40\r\n%b\r\n" % appender._digest)


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_refusal_proves_nothing_when_an_earlier_answer_was_lost(is_lost: bool) -> None:
    async with ScriptedRedis() as redis:
        appender = HistoryAppender(
            target_from_url(redis.url),
            prefix="p",
            client_name="c",
            metrics=Metrics(),
            timeouts=RedisTimeouts(),
        )
        appender.start()
        try:
            await accept(redis, appender)
            future = appender.append("pubsub:a", b"1", History(10, 60.0), None)
            first = await redis.next(b"EVALSHA")
            if is_lost:
                redis.drop()
                await accept(redis, appender)
                assert await redis.next(b"EVALSHA") == first
            redis.send(OOM)
            with pytest.raises(BrokerUnavailable) as refusal:
                await future
            assert refusal.value.is_undone is not is_lost
            again = appender.append("pubsub:a", b"2", History(10, 60.0), None)
            await redis.next(b"EVALSHA")
            redis.send(OOM)
            with pytest.raises(BrokerUnavailable) as refusal:
                await again
            assert refusal.value.is_undone
        finally:
            await appender.stop()


@asynccontextmanager
async def appending(redis: ScriptedRedis) -> AsyncIterator[HistoryAppender]:
    appender = HistoryAppender(
        target_from_url(redis.url), prefix="p", client_name="c", metrics=Metrics(), timeouts=RedisTimeouts()
    )
    appender.start()
    try:
        yield appender
    finally:
        await appender.stop()


def publish(appender: HistoryAppender, *payloads: bytes) -> "list[asyncio.Future[Position]]":
    return [appender.append("pubsub:a", payload, History(10, 60.0), None) for payload in payloads]


def heads_of(words: list[bytes]) -> list[bytes]:
    """Return the digits with which the tags of a call begin."""
    digits = words[7][24:]
    return [digits[at : at + 8] for at in range(0, len(digits), 8)]


def answer_with(redis: ScriptedRedis, answer: bytes) -> None:
    redis.send(b"$%d\r\n%b\r\n" % (len(answer), answer))


async def test_the_answer_to_a_batch_tells_the_positions_of_all() -> None:
    async with ScriptedRedis() as redis, appending(redis) as appender:
        await accept(redis, appender)
        futures = publish(appender, b"1", b"2", b"3")
        heads = heads_of(await redis.next(b"EVALSHA"))
        assert len(set(heads)) == 3
        answer_with(redis, b"epoch:7:%b89abcdef" % heads[2])
        tags = [head.decode() + "89abcdef" for head in heads]
        assert await asyncio.gather(*futures) == [Position("epoch", 5 + at, tag) for at, tag in enumerate(tags)]


@pytest.mark.parametrize("tag", ["other", "first", "longer", "none"])
async def test_an_answer_that_is_not_of_the_batch_is_no_position_of_it(tag: str) -> None:
    async with ScriptedRedis() as redis, appending(redis) as appender:
        await accept(redis, appender)
        futures = publish(appender, b"1", b"2", b"3")
        first, _, last = heads_of(await redis.next(b"EVALSHA"))
        tags = {"other": b"x" * 16, "first": first + b"89abcdef", "longer": last + b"0123456789abcdef", "none": b""}
        answer_with(redis, b"epoch:7:" + tags[tag])
        for future in futures:
            with pytest.raises(BrokerUnavailable) as unknown:
                await future
            assert "unexpected answer" in unknown.value.what
        assert appender._pending_count() == appender._pending_bytes == 0


async def test_what_is_cancelled_while_there_is_no_connection_is_not_sent() -> None:
    async with ScriptedRedis() as redis, appending(redis) as appender:
        futures = publish(appender, b"one", b"two", b"three")
        lost = publish(appender, *[b"four"] * 2)
        await asyncio.sleep(0)  # the batch is built
        await asyncio.sleep(0)
        gone = publish(appender, b"five", b"six")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for future in (futures[1], *lost, *gone):
            future.cancel()
        await accept(redis, appender)
        words = await redis.next(b"EVALSHA")
        assert b"one" in words and b"three" in words
        assert not {b"two", b"four", b"five", b"six"} & set(words)
        heads = heads_of(words)
        answer_with(redis, b"epoch:2:%b89abcdef" % heads[1])
        tags = [head.decode() + "89abcdef" for head in heads]
        assert [await futures[0], await futures[2]] == [Position("epoch", at, tag) for at, tag in enumerate(tags, 1)]
        await asyncio.sleep(0)
        assert appender._pending_count() == appender._pending_bytes == 0


async def test_publications_of_batches_count_towards_the_limits() -> None:
    async with ScriptedRedis() as redis, appending(redis) as appender:
        appender._queue_max = 5
        futures = publish(appender, *[b"x"] * 3)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        futures += publish(appender, *[b"x"] * 4)
        done = [future for future in futures if future.done()]
        assert len(done) == 2
        assert all(isinstance(future.exception(), BrokerUnavailable) for future in done)
        appender._queue_max, appender._queue_max_bytes = 100, 10_000
        count = len([future for future in publish(appender, *[b"x" * 1000] * 20) if not future.done()])
        assert count < 11
    await asyncio.sleep(0)
    assert all(isinstance(future.exception(), BrokerUnavailable) for future in futures)
    assert appender._pending_count() == appender._pending_bytes == 0


async def test_publications_fail_in_the_order_of_their_calls() -> None:
    """In a Cluster they are sent again in this order when their slot moves: also if some of them were a batch."""
    async with ScriptedRedis() as redis, appending(redis) as appender:
        await accept(redis, appender)
        order: list[int] = []
        first = publish(appender, b"0", b"1")
        await redis.next(b"EVALSHA")
        futures = first + publish(appender, b"2")
        await redis.next(b"EVALSHA")
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: order.append(number))
        redis.send(b"-MOVED 1 127.0.0.1:1\r\n-MOVED 1 127.0.0.1:1\r\n")
        for future in futures:
            with pytest.raises(BrokerUnavailable):
                await future
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == [0, 1, 2]


async def test_a_batch_of_which_one_is_left_gets_its_position() -> None:
    async with ScriptedRedis() as redis, appending(redis) as appender:
        kept, cancelled = publish(appender, b"kept", b"cancelled")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        cancelled.cancel()
        await accept(redis, appender)
        words = await redis.next(b"EVALSHA")
        assert b"cancelled" not in words
        (head,) = heads_of(words)
        answer_with(redis, b"epoch:1:%b89abcdef" % head)
        assert await kept == Position("epoch", 1, head.decode() + "89abcdef")
