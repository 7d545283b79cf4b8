"""Faults of a real server and of the connection to it. Deadlines are the defaults of RedisBroker."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import channel_name
from tests.support.fakes.brokers import PREFIX, hears, open_broker
from tests.support.processes.proxy import FaultProxy
from tests.support.servers.redis_servers import REAL_KINDS, RedisServer

NEWS = "pubsub:news"
NAME = channel_name(PREFIX, NEWS)


@pytest.fixture(params=REAL_KINDS)  # fakeredis runs in threads of this process: it can be neither frozen nor killed
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(request.param, tmp_path) as running:
        yield running


def reconnects(metrics: Metrics, role: str) -> float:
    return metrics.registry.get_sample_value("snorky_redis_reconnects_total", {"role": role}) or 0.0


async def test_client_kill_of_pubsub_is_healed_within_a_second_each_time(server: RedisServer) -> None:
    metrics = Metrics()
    client = server.client()
    async with open_broker(server.url, metrics=metrics) as (broker, heard):
        await asyncio.gather(*(broker.subscribe(f"pubsub:{number}") for number in range(500)))
        for round_ in range(1, 21):
            assert await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
            # type: ignore[misc]
            await heard.until(lambda expected=round_: heard.interruptions == expected, within_s=1.0)
            assert await client.publish(channel_name(PREFIX, "pubsub:499"), b"%d" % round_) == 1
        await heard.until(lambda: len(heard.publications) == 20)
    await client.aclose()
    assert reconnects(metrics, "subscriber") == 20
    assert reconnects(metrics, "publisher") == 0


async def test_a_frozen_server_is_noticed_within_six_seconds_and_healed_within_three(server: RedisServer) -> None:
    metrics = Metrics()
    async with open_broker(server.url, metrics=metrics) as (broker, heard):
        await broker.subscribe(NEWS)
        server.freeze()
        try:
            await hears(broker, False, within_s=6.0)
            with pytest.raises(BrokerUnavailable):
                await broker.publish(NEWS, b"into the void")
        finally:
            server.thaw()
        await hears(broker, within_s=3.0)
        assert heard.interruptions == 1
        assert await broker.publish(NEWS, b"again") == 1
        await heard.until(lambda: b"again" in heard.of(NEWS))
    assert (metrics.registry.get_sample_value("snorky_redis_delivery_unverified_seconds_total") or 0) > 1.0


async def test_a_short_freeze_loses_nothing_and_keeps_redis_verified(server: RedisServer) -> None:
    async with open_broker(server.url) as (broker, heard):
        await broker.subscribe(NEWS)
        server.freeze()
        futures = [broker.publish(NEWS, b"%d" % number) for number in range(1000)]
        loop = asyncio.get_running_loop()
        over = loop.time() + 1.0  # below silence and deadline
        while loop.time() < over:
            assert not broker.is_redis_unverified
            await asyncio.sleep(0.02)
        server.thaw()
        assert await asyncio.gather(*futures) == [1] * 1000
        await heard.until(lambda: heard.of(NEWS) == [b"%d" % number for number in range(1000)])
        assert heard.interruptions == 0


async def test_half_open_connections_are_noticed_within_six_seconds(server: RedisServer) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy, open_broker(proxy.url) as (broker, heard):
        await broker.subscribe(NEWS)
        proxy.swallow()
        await hears(broker, False, within_s=6.0)
        proxy.heal()
        await hears(broker, within_s=4.0)  # a connect attempt without an answer times out first: 2 s
        assert heard.interruptions in (1, 2)  # 2: the publisher dialled before the proxy healed, so a canary was late
        assert await broker.publish(NEWS, b"again") == 1
        await heard.until(lambda: heard.of(NEWS) == [b"again"])


async def test_connections_that_a_firewall_forgot_are_replaced_without_any_help(server: RedisServer) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy, open_broker(proxy.url) as (broker, heard):
        await broker.subscribe(NEWS)
        proxy.swallow()
        proxy.heal()  # new connections would work; the present ones never will
        await hears(broker, False, within_s=6.0)
        # the publisher's call fails with the subscriber's connection, not by its own deadline
        await hears(broker, within_s=2.0)
        await heard.until(lambda: heard.interruptions == 1)
        assert await broker.publish(NEWS, b"again") == 1


async def test_a_publish_whose_answer_is_lost_fails_in_time_and_is_never_sent_twice(server: RedisServer) -> None:
    async with (
        open_broker(server.url, node_id="witness") as (witness, seen),
        FaultProxy("127.0.0.1", server.port) as proxy,
        open_broker(proxy.url, publish_timeout_s=0.5) as (broker, _),
    ):
        await witness.subscribe(NEWS)
        proxy.lose_replies()
        loop = asyncio.get_running_loop()
        began = loop.time()
        futures = [broker.publish(NEWS, b"%d" % number) for number in range(10)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert loop.time() - began < 2.0
        assert all(isinstance(result, BrokerUnavailable) for result in results)
        proxy.heal()
        await hears(broker, within_s=10.0)
        assert await broker.publish(NEWS, b"fence") == 1
        await seen.until(lambda: b"fence" in seen.of(NEWS))
        assert seen.of(NEWS) == [*(b"%d" % number for number in range(10)), b"fence"]


async def test_unsent_commands_wait_for_the_next_connection(server: RedisServer) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy, open_broker(proxy.url) as (broker, heard):
        await broker.subscribe(NEWS)
        proxy.refuse()
        await hears(broker, False)
        future = broker.publish(NEWS, b"patient")
        proxy.heal()
        assert await future in (0, 1)  # the subscriber may reconnect after it
        await hears(broker)
        await heard.until(lambda: heard.interruptions == 1)


async def test_a_restarted_empty_server_is_whole_again_within_three_seconds(server: RedisServer) -> None:
    async with open_broker(server.url) as (broker, heard):
        keys = [f"pubsub:{number}" for number in range(12_000)]  # more than one window of commands
        await asyncio.gather(*map(broker.subscribe, keys))
        await server.restart()
        await heard.until(lambda: heard.interruptions == 1, within_s=3.0)
        assert all(map(broker.is_subscribed, keys))
        await hears(broker)
        assert await broker.publish(keys[-1], b"x") == 1
        await heard.until(lambda: heard.publications == [(keys[-1], b"x")])


async def test_a_stall_of_the_node_itself_does_not_count_as_lost_delivery(server: RedisServer) -> None:
    # The proxy runs on the same loop, so a canary in flight when the loop stops returns only some iterations later.
    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        open_broker(proxy.url, silence_s=0.2, deadline_s=0.3) as (broker, heard),
    ):
        proxy.delay_s = 0.05
        for _ in range(5):
            while broker._canary._sent_at is None:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.001)
            time.sleep(1.0)  # noqa: ASYNC251 - the loop stands still; that is the fault
            while broker._canary._sent_at is not None:
                assert not broker.is_redis_unverified
                await asyncio.sleep(0.001)
        assert not broker.is_redis_unverified and heard.interruptions == 0


async def test_slow_answers_keep_redis_verified(server: RedisServer) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.delay_s = 0.3
        async with open_broker(proxy.url) as (broker, heard):
            await asyncio.wait_for(broker.subscribe(NEWS), 3.0)
            futures = [broker.publish(NEWS, b"%d" % number) for number in range(100)]
            assert await asyncio.gather(*futures) == [1] * 100
            await heard.until(lambda: len(heard.of(NEWS)) == 100)
            assert heard.interruptions == 0


async def test_an_overrun_output_buffer_is_survived(server: RedisServer) -> None:
    client = server.client()
    await client.config_set("client-output-buffer-limit", "pubsub 1mb 1mb 1")
    async with open_broker(server.url) as (broker, heard):
        await broker.subscribe(NEWS)
        broker.pause()  # the node cannot keep up
        for _ in range(100):
            async with client.pipeline(transaction=False) as pipe:
                for _ in range(100):  # small payloads: Valkey shares large ones and counts them differently
                    pipe.publish(NAME, b"x" * 10_000)
                if 0 in await pipe.execute():
                    break  # Redis has closed the connection
        else:
            raise AssertionError("Redis did not cut the connection")
        broker.resume()
        await heard.until(lambda: heard.interruptions == 1)
        await hears(broker)
        assert await client.publish(NAME, b"after") == 1
        await heard.until(lambda: heard.of(NEWS)[-1:] == [b"after"])
    await client.aclose()
