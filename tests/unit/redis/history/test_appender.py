"""HistoryAppender: what the refusal of a publication proves when the answer to an earlier attempt was lost."""

import pytest

from snorky.gateway.contracts.history import History
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
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
