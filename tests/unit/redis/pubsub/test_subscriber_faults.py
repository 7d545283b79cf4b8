"""Servers that answer wrongly, refuse, or stop answering; channels of two names."""

import asyncio

import pytest

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.resp import REPLY_MAX_BYTES
from snorky.gateway.redis.pubsub.names import PubSubNames
from tests.support.scenarios.subscribers import CANARY, confirm, stand, subscriber, within
from tests.support.servers.scripted_redis import ScriptedRedis, confirmation, message


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"*-5\r\n",
        b":abc\r\n",
        b"+OK\r\n",
        b":0\r\n",
        b"-ERR something\r\n",
        b"*0\r\n",
        b"*1\r\n$9\r\nsubscribe\r\n",
        confirmation(b"subscribe", b"never asked for"),
        b"*3\r\n$7\r\nmessage\r\n*1\r\n:1\r\n$1\r\nx\r\n",
        b"*3\r\n" * 20,
        b"\x00" * 1000,
    ],
)
async def test_garbage_ends_the_connection_and_a_new_one_is_made(garbage: bytes) -> None:
    async with ScriptedRedis(confirm) as redis, subscriber(redis, dial_timeout_s=0.5) as (hearing, heard):
        await within(heard.whole)
        await hearing.subscribe("a")
        redis.send(garbage + message(b"a", b"1"))
        if garbage == b"*3\r\n" * 20:  # deep, but still valid; the next bytes are not
            redis.send(b"*" * 100 + b"\r\n")
        assert await within(heard.whole) is True
        assert hearing.is_subscribed("a")
        assert redis.connections == 2


async def test_an_answer_in_the_wrong_place_ends_the_connection() -> None:
    async with ScriptedRedis() as redis, subscriber(redis) as (hearing, heard):
        await stand(redis, heard)
        waiting = asyncio.ensure_future(hearing.subscribe("a"))
        await redis.next(b"SUBSCRIBE")
        redis.send(confirmation(b"subscribe", b"b"))
        await heard.lost.get()
        assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", b"a")
        redis.send(confirmation(b"subscribe", b"a"))
        await asyncio.wait_for(waiting, 30.0)


async def test_a_reply_beyond_the_bound_is_not_buffered() -> None:
    async with ScriptedRedis(confirm) as redis, subscriber(redis) as (hearing, heard):
        await within(heard.whole)
        await hearing.subscribe("a")
        redis.send(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$%d\r\n" % (1 << 30) + b"x" * (REPLY_MAX_BYTES + 1))
        assert await within(heard.whole) is True
        assert heard.batches == []


async def test_a_refused_subscribe_fails_at_once_and_may_be_tried_again() -> None:
    async with ScriptedRedis() as redis, subscriber(redis) as (hearing, heard):
        await stand(redis, heard)
        for _ in range(2):
            waiting = asyncio.ensure_future(hearing.subscribe("a"))
            await redis.next(b"SUBSCRIBE")
            redis.send(b"-NOPERM no\r\n")
            with pytest.raises(BrokerUnavailable) as refusal:
                await asyncio.wait_for(waiting, 1.0)
            assert "NOPERM" in refusal.value.what
        assert hearing.is_whole


async def test_a_channel_refused_after_it_was_granted_is_reported_as_lost() -> None:
    async with ScriptedRedis() as redis, subscriber(redis) as (hearing, heard):
        await stand(redis, heard)
        waiting = asyncio.ensure_future(hearing.subscribe("a"))
        await redis.next(b"SUBSCRIBE")
        redis.send(confirmation(b"subscribe", b"a"))
        await waiting
        redis.drop()
        await heard.lost.get()
        for _ in range(2):
            assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", b"a")
            assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", CANARY)
            redis.send(b"-NOPERM no\r\n" + confirmation(b"subscribe", CANARY))
            await heard.lost.get()
        assert heard.whole.empty()


async def test_a_server_that_stops_answering_while_resubscribing_times_out() -> None:
    async with ScriptedRedis() as redis, subscriber(redis, dial_timeout_s=0.1) as (_, heard):
        await redis.next(b"SUBSCRIBE")  # never answered
        await asyncio.wait_for(heard.lost.get(), 30.0)
        await redis.next(b"SUBSCRIBE")
        redis.send(confirmation(b"subscribe", CANARY))
        await within(heard.whole)


async def test_a_server_that_accepts_and_never_answers_is_redialled() -> None:
    accepted = asyncio.Semaphore(0)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.release()
        await reader.read(-1)  # until it times out
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    redis = ScriptedRedis()
    redis.port = server.sockets[0].getsockname()[1]
    async with subscriber(redis, dial_timeout_s=0.1):
        for _ in range(3):
            await asyncio.wait_for(accepted.acquire(), 30.0)
    server.close()
    await server.wait_closed()


NAMES = PubSubNames("test")


def both(key: str) -> tuple[bytes, ...]:
    """Two names, as a broker gives them."""
    return NAMES.of(key)


async def test_a_channel_of_two_names_is_confirmed_with_the_second() -> None:
    async with ScriptedRedis() as redis, subscriber(redis, names=NAMES) as (hearing, heard):
        await stand(redis, heard)
        waiting = asyncio.ensure_future(hearing.subscribe("a"))
        assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", *both("a"))
        redis.send(confirmation(b"subscribe", both("a")[0]) + message(CANARY, b"read"))
        await asyncio.wait_for(heard.canaries.get(), 30.0)
        assert not waiting.done() and not hearing.is_subscribed("a")
        redis.send(confirmation(b"subscribe", both("a")[1]))
        await asyncio.wait_for(waiting, 30.0)
        hearing.unsubscribe("a")
        assert await redis.next(b"UNSUBSCRIBE") == (b"UNSUBSCRIBE", *both("a"))
        fence = asyncio.ensure_future(hearing.subscribe("b"))
        await redis.next(b"SUBSCRIBE")
        for kind, key in ((b"unsubscribe", "a"), (b"subscribe", "b")):
            redis.send(b"".join(confirmation(kind, name) for name in both(key)))
        await asyncio.wait_for(fence, 30.0)


async def test_a_refusal_of_two_names_refuses_the_channel_and_no_other() -> None:
    async with ScriptedRedis() as redis, subscriber(redis, names=NAMES) as (hearing, heard):
        await stand(redis, heard)
        refused, granted = (asyncio.ensure_future(hearing.subscribe(key)) for key in "ab")
        for _ in range(2):
            await redis.next(b"SUBSCRIBE")
        redis.send(b"-NOPERM no\r\n" + b"".join(confirmation(b"subscribe", name) for name in both("b")))
        with pytest.raises(BrokerUnavailable):
            await refused
        await asyncio.wait_for(granted, 30.0)


async def test_messages_on_both_names_of_a_channel_keep_their_order() -> None:
    async with ScriptedRedis() as redis, subscriber(redis, names=NAMES) as (hearing, heard):
        await stand(redis, heard)
        waiting = asyncio.ensure_future(hearing.subscribe("a"))
        await redis.next(b"SUBSCRIBE")
        redis.send(b"".join(confirmation(b"subscribe", name) for name in both("a")))
        await asyncio.wait_for(waiting, 30.0)
        redis.send(b"".join(message(both("a")[number % 3 % 2], b"%d" % number) for number in range(7)))
        await asyncio.wait_for(heard.batch_came.wait(), 30.0)
        assert heard.batches == [{"a": [b"0", b"1", b"2", b"3", b"4", b"5", b"6"]}]


async def test_node_messages_are_refused_on_the_publishers_channel() -> None:
    said = [
        b"\xc11 e:1:t p j\n1",
        b'\xc12 j {"whole":"true"}\n2',
        b'\xc13 7 6 j ["+",true,"a","n.1",""]\n3',
        b"\xc1h 4",
    ]
    metrics = Metrics()
    async with ScriptedRedis() as redis, subscriber(redis, names=NAMES, metrics=metrics) as (hearing, heard):
        await stand(redis, heard)
        waiting = asyncio.ensure_future(hearing.subscribe("a"))
        await redis.next(b"SUBSCRIBE")
        redis.send(b"".join(confirmation(b"subscribe", name) for name in both("a")))
        await asyncio.wait_for(waiting, 30.0)
        redis.send(b"".join(message(name, each) for name in both("a") for each in (*said, b"fence")))
        await asyncio.wait_for(heard.batch_came.wait(), 30.0)
        hint = b"\xc1h e:1:t p j\n1"  # a position is only a reason to check
        assert heard.batches == [{"a": [hint, b"fence", *said, b"fence"]}]
        assert metrics.drops.labels("forged")._value.get() == 3
