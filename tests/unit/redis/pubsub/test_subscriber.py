"""Subscriber against a scripted server: orders of requests and answers, refusals, invalid bytes, bounds."""

import asyncio
import gc
from collections import deque

import pytest

import snorky.gateway.redis.pubsub.subscriber as subscriber_module
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.pubsub.names import PubSubNames
from snorky.gateway.redis.pubsub.subscriber import WINDOW
from tests.support.scenarios.subscribers import CANARY, confirm, stand, subscriber, within
from tests.support.servers.scripted_redis import Command, ScriptedRedis, confirmation, message


async def turn() -> None:
    """Run everything that is ready, the loop's reading included."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_first_of_two_confirmations_confirms_nothing_when_unsubscribed_between() -> None:
    async with ScriptedRedis() as redis, subscriber(redis) as (hearing, heard):
        await stand(redis, heard)
        first = asyncio.ensure_future(hearing.subscribe("a"))
        assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", b"a")
        first.cancel()  # its client disconnected: the request is withdrawn
        assert await redis.next(b"UNSUBSCRIBE") == (b"UNSUBSCRIBE", b"a")
        second = asyncio.ensure_future(hearing.subscribe("a"))
        assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", b"a")

        redis.send(confirmation(b"subscribe", b"a") + message(CANARY, b"read"))
        assert await asyncio.wait_for(heard.canaries.get(), 30.0) == b"read"
        await turn()
        assert not second.done() and not hearing.is_subscribed("a")

        redis.send(confirmation(b"unsubscribe", b"a") + confirmation(b"subscribe", b"a"))
        await asyncio.wait_for(second, 30.0)
        assert hearing.is_subscribed("a")


async def test_requests_of_one_loop_iteration_are_one_write() -> None:
    writes = []
    async with ScriptedRedis(confirm) as redis, subscriber(redis) as (hearing, heard):
        await within(heard.whole)
        assert hearing._link.wire is not None
        write = hearing._link.wire.write
        hearing._link.wire.write = lambda data: (writes.append(data), write(data))  # type: ignore[method-assign,return-value,func-returns-value]
        await asyncio.gather(*(hearing.subscribe(f"k{number}") for number in range(100)))
        assert len(writes) == 1


async def test_subscribing_again_within_the_linger_costs_no_command() -> None:
    async with ScriptedRedis(confirm) as redis, subscriber(redis, linger_s=60) as (hearing, heard):
        await within(heard.whole)
        await hearing.subscribe("a")
        hearing.unsubscribe("a")
        assert not hearing.is_subscribed("a")
        await hearing.subscribe("a")
        assert hearing.is_subscribed("a")
        await hearing.subscribe("fence")
        assert [(await redis.commands.get())[1] for _ in range(3)] == [CANARY, b"a", b"fence"]


async def test_a_wish_withdrawn_while_the_window_is_full_still_lingers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber_module, "WINDOW", 1)
    async with ScriptedRedis() as redis, subscriber(redis, linger_s=60) as (hearing, heard):
        await stand(redis, heard)
        first = asyncio.ensure_future(hearing.subscribe("a"))
        await redis.next(b"SUBSCRIBE")
        second = asyncio.ensure_future(hearing.subscribe("a"))
        await turn()
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        redis.send(confirmation(b"subscribe", b"a"))
        fence = asyncio.ensure_future(hearing.subscribe("fence"))
        assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", b"fence")
        redis.send(confirmation(b"subscribe", b"fence"))
        await fence


async def test_a_wish_withdrawn_by_all_is_taken_back() -> None:
    async with ScriptedRedis() as redis, subscriber(redis, confirm_timeout_s=0.1) as (hearing, heard):
        await stand(redis, heard)
        results = await asyncio.gather(hearing.subscribe("a"), hearing.subscribe("a"), return_exceptions=True)
        assert all(isinstance(result, BrokerUnavailable) for result in results)
        assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", b"a")  # one for both
        assert await redis.next(b"UNSUBSCRIBE") == (b"UNSUBSCRIBE", b"a")


async def test_a_cancelled_waiter_leaves_the_others_requests() -> None:
    async with ScriptedRedis() as redis, subscriber(redis) as (hearing, heard):
        await stand(redis, heard)
        impatient = asyncio.ensure_future(hearing.subscribe("a"))
        patient = asyncio.ensure_future(hearing.subscribe("a"))
        await redis.next(b"SUBSCRIBE")
        impatient.cancel()
        await turn()
        redis.send(confirmation(b"subscribe", b"a"))
        await asyncio.wait_for(patient, 30.0)
        assert hearing.is_subscribed("a")
        assert redis.commands.empty()


async def test_a_subscription_in_use_outlives_a_later_waiter_that_fails() -> None:
    async with ScriptedRedis() as redis, subscriber(redis, confirm_timeout_s=0.1) as (hearing, heard):
        await stand(redis, heard)
        first = asyncio.ensure_future(hearing.subscribe("a"))
        await redis.next(b"SUBSCRIBE")
        redis.send(confirmation(b"subscribe", b"a"))
        await first
        redis.drop()
        await heard.lost.get()
        with pytest.raises(BrokerUnavailable):
            await hearing.subscribe("a")
        names = [await redis.next(b"SUBSCRIBE") for _ in range(2)]
        assert names == [(b"SUBSCRIBE", b"a"), (b"SUBSCRIBE", CANARY)]  # the canary's last
        redis.send(confirmation(b"subscribe", b"a") + confirmation(b"subscribe", CANARY))
        assert await within(heard.whole) is True  # interrupted
        assert hearing.is_subscribed("a")


async def test_it_is_complete_only_after_every_confirmation() -> None:
    async with ScriptedRedis() as redis, subscriber(redis) as (hearing, heard):
        await stand(redis, heard)
        waiting = asyncio.gather(*(hearing.subscribe(key) for key in "abc"))
        for key in (b"a", b"b", b"c"):
            await redis.next(b"SUBSCRIBE")
            redis.send(confirmation(b"subscribe", key))
        await waiting
        redis.drop()
        await heard.lost.get()
        assert not any(map(hearing.is_subscribed, "abc"))
        for key in (b"a", b"b", b"c"):
            assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", key)
            assert not hearing.is_whole
            redis.send(confirmation(b"subscribe", key))
        await redis.next(b"SUBSCRIBE")
        await turn()
        assert heard.whole.empty()
        redis.send(confirmation(b"subscribe", CANARY))
        assert await within(heard.whole) is True


async def test_no_more_than_a_window_of_commands_is_unanswered() -> None:
    async with ScriptedRedis() as redis, subscriber(redis, confirm_timeout_s=30, dial_timeout_s=30) as (hearing, heard):
        await stand(redis, heard)
        keys = [f"k{number}" for number in range(2 * WINDOW)]
        waiting = asyncio.gather(*map(hearing.subscribe, keys))
        for _ in range(WINDOW):
            await redis.next(b"SUBSCRIBE")
        await turn()
        assert redis.commands.empty()
        redis.send(b"".join(confirmation(b"subscribe", key.encode()) for key in keys[:WINDOW]))
        for _ in range(WINDOW):
            await redis.next(b"SUBSCRIBE")
        redis.send(b"".join(confirmation(b"subscribe", key.encode()) for key in keys[WINDOW:]))
        await asyncio.wait_for(waiting, 30.0)


async def test_one_read_is_one_batch_grouped_by_channel_in_order() -> None:
    async with ScriptedRedis(confirm) as redis, subscriber(redis) as (hearing, heard):
        await within(heard.whole)
        await hearing.subscribe("a")
        await hearing.subscribe("b")
        data = b"".join(message(name, payload) for name, payload in [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
        redis.send(data + message(b"never asked for", b"4"))
        await asyncio.wait_for(heard.batch_came.wait(), 30.0)
        assert heard.batches == [{"a": [b"1", b"3"], "b": [b"2"]}]


async def test_a_message_split_anywhere_is_one_message() -> None:
    async with ScriptedRedis(confirm) as redis, subscriber(redis) as (hearing, heard):
        await within(heard.whole)
        await hearing.subscribe("a")
        data = message(b"a", b"\r\n*3\r\n")
        for position in range(1, len(data)):
            heard.batch_came.clear()
            redis.send(data[:position])
            await turn()
            redis.send(data[position:])
            await asyncio.wait_for(heard.batch_came.wait(), 30.0)
        assert heard.batches == [{"a": [b"\r\n*3\r\n"]}] * (len(data) - 1)


async def test_a_channel_is_stored_without_its_names() -> None:
    names = PubSubNames("test")

    def confirm_both(command: Command) -> bytes:
        return b"".join(confirmation(command[0].lower(), name) for name in command[1:])

    async with ScriptedRedis(confirm_both) as redis, subscriber(redis, names=names) as (hearing, heard):
        await within(heard.whole)
        await asyncio.gather(*(hearing.subscribe(f"pubsub:{number}") for number in range(100)))
        tables = [each for each in gc.get_referrers(*hearing._by_key.values()) if isinstance(each, (dict, deque))]
        assert len(tables) == 1 and tables[0] is hearing._by_key
        redis.send(message(names.of("pubsub:7")[0], b"1"))
        await asyncio.wait_for(heard.batch_came.wait(), 30.0)
        assert heard.batches == [{"pubsub:7": [b"1"]}]


async def test_a_channel_that_was_given_up_is_heard_when_it_is_subscribed_again() -> None:
    async with ScriptedRedis(confirm) as redis, subscriber(redis) as (hearing, heard):
        await within(heard.whole)
        for number in range(2):
            heard.batch_came.clear()
            await hearing.subscribe("a")
            redis.send(message(b"a", b"%d" % number))
            await asyncio.wait_for(heard.batch_came.wait(), 30.0)
            hearing.unsubscribe("a")
            await hearing.subscribe("fence")  # UNSUBSCRIBE is sent before this is confirmed
        assert heard.batches == [{"a": [b"0"]}, {"a": [b"1"]}]
