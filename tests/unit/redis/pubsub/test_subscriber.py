"""Subscriber against a scripted server: orders of requests and answers, refusals, invalid bytes, bounds."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

import snorky.gateway.redis.pubsub.subscriber as subscriber_module
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.resp import REPLY_MAX_BYTES
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from snorky.gateway.redis.pubsub.subscriber import WINDOW, Subscriber
from snorky.gateway.redis.target import target_from_url
from tests.support.servers.scripted_redis import Command, ScriptedRedis, confirmation, message

CANARY = b"canary"


class Heard:
    """Calls of a subscriber's listener."""

    def __init__(self) -> None:
        self.batches: list[dict[str, list[bytes]]] = []
        self.canaries: asyncio.Queue[bytes] = asyncio.Queue()
        self.whole: asyncio.Queue[bool] = asyncio.Queue()
        self.lost: asyncio.Queue[None] = asyncio.Queue()
        self.batch_came = asyncio.Event()

    def on_batch(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        self.batches.append({key: list(payloads) for key, payloads in batch.items()})
        self.batch_came.set()


@asynccontextmanager
async def subscriber(
    redis: ScriptedRedis,
    *,
    linger_s: float = 0.0,
    confirm_timeout_s: float = 5.0,
    dial_timeout_s: float = 2.0,
    names_of: Callable[[str], tuple[bytes, ...]] = lambda key: (key.encode(),),
    metrics: Metrics | None = None,
) -> AsyncIterator[tuple[Subscriber, Heard]]:
    heard = Heard()
    instance = Subscriber(
        target_from_url(redis.url),
        client_name="test",
        names_of=names_of,
        canary_name=CANARY,
        on_batch=heard.on_batch,
        on_canary=lambda payloads: [heard.canaries.put_nowait(payload) for payload in payloads],
        on_whole=heard.whole.put_nowait,
        on_lost=lambda: heard.lost.put_nowait(None),
        metrics=metrics or Metrics(),
        timeouts=RedisTimeouts(confirm_timeout_s=confirm_timeout_s, linger_s=linger_s, dial_timeout_s=dial_timeout_s),
    )
    instance.start()
    try:
        async with asyncio.timeout(15.0):  # an answer that never comes must fail a test, not hang it
            yield instance, heard
    finally:
        await instance.stop()


async def within(awaitable: "asyncio.Future[bool] | asyncio.Queue[bool]") -> bool:
    return await asyncio.wait_for(awaitable.get() if isinstance(awaitable, asyncio.Queue) else awaitable, 5.0)


async def stand(redis: ScriptedRedis, heard: Heard) -> None:
    """Complete its subscriptions."""
    assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", CANARY)
    redis.send(confirmation(b"subscribe", CANARY))
    await within(heard.whole)


async def turn() -> None:
    """Run everything that is ready, the loop's reading included."""
    for _ in range(10):
        await asyncio.sleep(0)


def confirm(command: Command) -> bytes | None:
    return confirmation(command[0].lower(), command[1])


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
        assert await asyncio.wait_for(heard.canaries.get(), 5.0) == b"read"
        await turn()
        assert not second.done() and not hearing.is_subscribed("a")

        redis.send(confirmation(b"unsubscribe", b"a") + confirmation(b"subscribe", b"a"))
        await asyncio.wait_for(second, 5.0)
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
        await asyncio.wait_for(patient, 5.0)
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
        await asyncio.wait_for(heard.batch_came.wait(), 5.0)
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
            await asyncio.wait_for(heard.batch_came.wait(), 5.0)
        assert heard.batches == [{"a": [b"\r\n*3\r\n"]}] * (len(data) - 1)


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
        await asyncio.wait_for(waiting, 5.0)


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
        await asyncio.wait_for(heard.lost.get(), 5.0)
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
            await asyncio.wait_for(accepted.acquire(), 5.0)
    server.close()
    await server.wait_closed()


def both(key: str) -> tuple[bytes, bytes]:
    """Two names, as a broker gives them."""
    return f"open {key}".encode(), f"nodes {key}".encode()


async def test_a_channel_of_two_names_is_confirmed_with_the_second() -> None:
    async with ScriptedRedis() as redis, subscriber(redis, names_of=both) as (hearing, heard):
        await stand(redis, heard)
        waiting = asyncio.ensure_future(hearing.subscribe("a"))
        assert await redis.next(b"SUBSCRIBE") == (b"SUBSCRIBE", *both("a"))
        redis.send(confirmation(b"subscribe", b"open a") + message(CANARY, b"read"))
        await asyncio.wait_for(heard.canaries.get(), 5.0)
        assert not waiting.done() and not hearing.is_subscribed("a")
        redis.send(confirmation(b"subscribe", b"nodes a"))
        await asyncio.wait_for(waiting, 5.0)
        hearing.unsubscribe("a")
        assert await redis.next(b"UNSUBSCRIBE") == (b"UNSUBSCRIBE", *both("a"))
        fence = asyncio.ensure_future(hearing.subscribe("b"))
        await redis.next(b"SUBSCRIBE")
        for kind, key in ((b"unsubscribe", "a"), (b"subscribe", "b")):
            redis.send(b"".join(confirmation(kind, name) for name in both(key)))
        await asyncio.wait_for(fence, 5.0)


async def test_a_refusal_of_two_names_refuses_the_channel_and_no_other() -> None:
    async with ScriptedRedis() as redis, subscriber(redis, names_of=both) as (hearing, heard):
        await stand(redis, heard)
        refused, granted = (asyncio.ensure_future(hearing.subscribe(key)) for key in "ab")
        for _ in range(2):
            await redis.next(b"SUBSCRIBE")
        redis.send(b"-NOPERM no\r\n" + b"".join(confirmation(b"subscribe", name) for name in both("b")))
        with pytest.raises(BrokerUnavailable):
            await refused
        await asyncio.wait_for(granted, 5.0)


async def test_messages_on_both_names_of_a_channel_keep_their_order() -> None:
    async with ScriptedRedis() as redis, subscriber(redis, names_of=both) as (hearing, heard):
        await stand(redis, heard)
        waiting = asyncio.ensure_future(hearing.subscribe("a"))
        await redis.next(b"SUBSCRIBE")
        redis.send(b"".join(confirmation(b"subscribe", name) for name in both("a")))
        await asyncio.wait_for(waiting, 5.0)
        redis.send(b"".join(message(both("a")[number % 3 % 2], b"%d" % number) for number in range(7)))
        await asyncio.wait_for(heard.batch_came.wait(), 5.0)
        assert heard.batches == [{"a": [b"0", b"1", b"2", b"3", b"4", b"5", b"6"]}]


async def test_node_messages_are_refused_on_the_publishers_channel() -> None:
    said = [
        b"\xc11 e:1:t p j\n1",
        b'\xc12 j {"whole":"true"}\n2',
        b'\xc13 7 6 j ["+",true,"a","n.1",""]\n3',
        b"\xc1h 4",
    ]
    metrics = Metrics()
    async with ScriptedRedis() as redis, subscriber(redis, names_of=both, metrics=metrics) as (hearing, heard):
        await stand(redis, heard)
        waiting = asyncio.ensure_future(hearing.subscribe("a"))
        await redis.next(b"SUBSCRIBE")
        redis.send(b"".join(confirmation(b"subscribe", name) for name in both("a")))
        await asyncio.wait_for(waiting, 5.0)
        redis.send(b"".join(message(name, each) for name in both("a") for each in (*said, b"fence")))
        await asyncio.wait_for(heard.batch_came.wait(), 5.0)
        hint = b"\xc1h e:1:t p j\n1"  # a position is only a reason to check
        assert heard.batches == [{"a": [hint, b"fence", *said, b"fence"]}]
        assert metrics.drops.labels("forged")._value.get() == 3
