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


async def accept(redis: ScriptedRedis, sequencer: HistoryAppender) -> None:
    """Answer a sequencer's commands on each connection before it publishes."""
    await redis.next(b"EVAL")
    await redis.next(b"SCRIPT")
    redis.send(b"$3\r\nrun\r\n$40\r\n%b\r\n" % sequencer._digest)


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_refusal_proves_nothing_when_an_earlier_answer_was_lost(is_lost: bool) -> None:
    async with ScriptedRedis() as redis:
        sequencer = HistoryAppender(
            target_from_url(redis.url),
            prefix="p",
            client_name="c",
            metrics=Metrics(),
            timeouts=RedisTimeouts(),
        )
        sequencer.start()
        try:
            await accept(redis, sequencer)
            future = sequencer.sequence("pubsub:a", b"1", History(10, 60.0), None)
            first = await redis.next(b"EVALSHA")
            if is_lost:
                redis.drop()
                await accept(redis, sequencer)
                assert await redis.next(b"EVALSHA") == first
            redis.send(OOM)
            with pytest.raises(BrokerUnavailable) as refusal:
                await future
            assert refusal.value.is_undone is not is_lost
            again = sequencer.sequence("pubsub:a", b"2", History(10, 60.0), None)
            await redis.next(b"EVALSHA")
            redis.send(OOM)
            with pytest.raises(BrokerUnavailable) as refusal:
                await again
            assert refusal.value.is_undone
        finally:
            await sequencer.stop()
