"""The contract of `contracts.broker`: RedisBroker on each kind of server, SpreadBroker and ClusterBroker on several."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis import channel_name
from tests.support.fakes.brokers import PREFIX, Recorder, hears, open_broker
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import KINDS, AnyServer
from tests.support.servers.shared import Servers, SharedServers

NEWS = "pubsub:news"


def name(key: str) -> bytes:
    return channel_name(PREFIX, key)


@pytest.fixture(params=(*KINDS, "spread", "cluster"))
async def server(request: pytest.FixtureRequest, shared: SharedServers) -> AsyncIterator[Servers]:
    async with shared.lend(request.param) as running:
        yield running


@pytest.fixture
async def other(server: AnyServer) -> AsyncIterator[Any]:
    """Any Redis client: a backend job's, an operator's."""
    client = server.client()
    await client.ping()
    yield client
    await client.aclose()


async def subscribers(client: Any, key: str) -> int:
    ((_, count),) = await client.pubsub_numsub(name(key))
    return int(count)


async def test_a_publication_reaches_its_own_node_and_others(server: AnyServer) -> None:
    async with (
        open_broker(server.url, node_id="a") as (first, first_heard),
        open_broker(server.url, node_id="b") as (second, second_heard),
    ):
        await asyncio.gather(first.subscribe(NEWS), second.subscribe(NEWS))
        assert await first.publish(NEWS, b"1") == 2
        await first_heard.until(lambda: first_heard.publications == [(NEWS, b"1")])
        await second_heard.until(lambda: second_heard.publications == [(NEWS, b"1")])


async def test_ten_thousand_arrive_in_order(server: AnyServer) -> None:
    async with open_broker(server.url, publish_timeout_s=60.0) as (broker, heard):  # fakeredis needs seconds
        await broker.subscribe(NEWS)
        sent = [b"%d" % number for number in range(10_000)]
        futures = []
        for start in range(0, len(sent), 500):  # over many loop iterations, as in practice
            futures += [broker.publish(NEWS, payload) for payload in sent[start : start + 500]]
            await asyncio.sleep(0)
        assert await asyncio.gather(*futures) == [1] * len(sent)
        await heard.until(lambda: len(heard.of(NEWS)) >= len(sent), within_s=60)
        assert heard.of(NEWS) == sent
        if server.kind != "fakeredis":  # it writes one by one
            assert heard.batches < len(sent) / 5


async def test_a_bare_publish_of_any_client_is_delivered(server: AnyServer, other: Any) -> None:
    async with open_broker(server.url) as (broker, heard):
        await broker.subscribe(NEWS)
        assert await other.publish(name(NEWS), b'{"x":1}') == 1
        await heard.until(lambda: heard.publications == [(NEWS, b'{"x":1}')])


async def test_subscribe_returns_only_once_redis_has_confirmed(server: AnyServer, other: Any) -> None:
    async with open_broker(server.url) as (broker, heard):
        keys = [f"pubsub:{number}" for number in range(100)]
        for key in keys:
            await broker.subscribe(key)
            assert broker.is_subscribed(key)
            assert await other.publish(name(key), b"right after") == 1
        await heard.until(lambda: len(heard.publications) == len(keys))


async def test_concurrent_subscribes_share_one_subscription(server: AnyServer, other: Any) -> None:
    async with open_broker(server.url) as (broker, heard):
        await asyncio.gather(*(broker.subscribe(NEWS) for _ in range(50)))
        await other.publish(name(NEWS), b"once")
        await broker.publish(NEWS, b"fence")
        await heard.until(lambda: (NEWS, b"fence") in heard.publications)
        assert heard.of(NEWS) == [b"once", b"fence"]


async def test_subscribe_unsubscribe_subscribe_ends_subscribed(server: AnyServer, other: Any) -> None:
    async with open_broker(server.url, linger_s=0.0) as (broker, heard):
        for number in range(50):
            await broker.subscribe(NEWS)
            broker.unsubscribe(NEWS)
            if number % 2:
                await asyncio.sleep(0)  # UNSUBSCRIBE may be in flight, or not yet
            await broker.subscribe(NEWS)
            assert await other.publish(name(NEWS), b"%d" % number) == 1
            # before unsubscribing: publications in flight to an ended subscriber are lost
            await heard.until(lambda: len(heard.of(NEWS)) == number + 1)  # noqa: B023 - awaited in this turn
        assert heard.of(NEWS) == [b"%d" % number for number in range(50)]


async def test_unsubscribe_reaches_redis_after_the_linger(server: AnyServer, other: Any) -> None:
    async with open_broker(server.url, linger_s=0.2) as (broker, heard):
        await broker.subscribe(NEWS)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        broker.unsubscribe(NEWS)
        assert not broker.is_subscribed(NEWS)

        async def is_gone() -> bool:
            return await subscribers(other, NEWS) == 0

        assert not await is_gone() or loop.time() - began_s >= 0.2  # the subscription lingers
        await eventually(is_gone, within_s=30, what="UNSUBSCRIBE")
        assert loop.time() - began_s >= 0.2
        await other.publish(name(NEWS), b"unheard")
        await broker.subscribe("pubsub:fence")
        await broker.publish("pubsub:fence", b"")
        await heard.until(lambda: heard.of("pubsub:fence"))
        assert heard.of(NEWS) == []


async def test_nothing_is_delivered_between_unsubscribe_and_the_linger(server: AnyServer, other: Any) -> None:
    async with open_broker(server.url, linger_s=60.0) as (broker, heard):
        await broker.subscribe(NEWS)
        broker.unsubscribe(NEWS)
        assert await other.publish(name(NEWS), b"given up") == 1
        await broker.subscribe("pubsub:fence")
        await broker.publish("pubsub:fence", b"")
        await heard.until(lambda: heard.of("pubsub:fence"))
        assert heard.of(NEWS) == []
        await broker.subscribe(NEWS)
        assert await other.publish(name(NEWS), b"wanted again") == 1
        await heard.until(lambda: heard.of(NEWS) == [b"wanted again"])


@pytest.mark.parametrize(
    "key", ["pubsub:", "pubsub:a}b{c", "pubsub:*", "pubsub:[a-z]?", "pubsub:\r\n$1\r\nx", "pubsub:\x00é€😀", "s:~{}"]
)
async def test_any_channel_name_is_only_a_name(server: AnyServer, other: Any, key: str) -> None:
    async with open_broker(server.url) as (broker, heard):
        await broker.subscribe(key)
        await other.publish(name("pubsub:else"), b"not for us")
        await other.publish(name(key), b"\x00\xff\r\n")
        await heard.until(lambda: heard.publications)
        assert [each for each, _ in heard.publications] == [key]


@pytest.mark.parametrize("server", KINDS, indirect=True)
async def test_a_lost_connection_is_restored_and_the_listener_notified(server: AnyServer) -> None:
    # By a proxy: fakeredis knows no CLIENT KILL (the real servers' is in tests/faults).
    async with FaultProxy("127.0.0.1", server.port) as proxy, open_broker(proxy.url) as (broker, heard):
        keys = [f"pubsub:{number}" for number in range(20)]
        await asyncio.gather(*map(broker.subscribe, keys))
        assert heard.interruptions == 0
        proxy.cut()
        await heard.until(lambda: heard.interruptions == 1)
        assert all(map(broker.is_subscribed, keys))  # reported only once all subscriptions are complete
        await hears(broker)
        for key in keys:
            assert await broker.publish(key, b"again") == 1
        await heard.until(lambda: len(heard.publications) == len(keys))


@pytest.mark.parametrize("server", KINDS, indirect=True)
async def test_ended_subscriptions_are_not_restored(server: AnyServer, other: Any) -> None:
    async with FaultProxy("127.0.0.1", server.port) as proxy, open_broker(proxy.url) as (broker, heard):
        await asyncio.gather(broker.subscribe(NEWS), broker.subscribe("pubsub:old"))
        broker.unsubscribe("pubsub:old")  # the subscription lingers
        proxy.cut()
        await heard.until(lambda: heard.interruptions == 1)
        assert await subscribers(other, NEWS) == 1
        assert await subscribers(other, "pubsub:old") == 0


async def test_a_publish_fails_while_the_server_is_down_and_works_afterwards(server: AnyServer) -> None:
    async with open_broker(server.url, publish_timeout_s=0.3) as (broker, heard):
        await broker.subscribe(NEWS)
        await server.stop()
        with pytest.raises(BrokerUnavailable):
            await broker.publish(NEWS, b"lost")
        await server.start()
        await heard.until(lambda: heard.interruptions)
        await hears(broker)
        await hears(broker)

        async def is_published() -> bool:
            with suppress(BrokerUnavailable):  # the timeout is short
                assert await broker.publish(NEWS, b"found") == 1
                return True
            return False

        await eventually(is_published, within_s=30, what="a publication is answered in time")
        await heard.until(lambda: heard.of(NEWS))
        assert set(heard.of(NEWS)) == {b"found"}


async def test_subscribe_fails_in_time_while_the_server_is_down(server: AnyServer) -> None:
    async with open_broker(server.url, confirm_timeout_s=0.2) as (broker, heard):

        async def is_confirmed() -> bool:
            with suppress(BrokerUnavailable):  # the timeout is short
                await broker.subscribe(NEWS)
                return True
            return False

        await eventually(is_confirmed, within_s=30, what="a subscription is confirmed in time")
        await server.stop()
        await hears(broker, False)
        with pytest.raises(BrokerUnavailable):
            await broker.subscribe("pubsub:late")
        await server.start()
        await heard.until(lambda: heard.interruptions)
        await hears(broker)
        assert broker.is_subscribed(NEWS)
        assert not broker.is_subscribed("pubsub:late")  # the request was withdrawn


async def test_paused_reading_keeps_redis_verified_and_loses_nothing(server: AnyServer, other: Any) -> None:
    async with open_broker(server.url, silence_s=0.2, deadline_s=1.0) as (broker, heard):
        await broker.subscribe(NEWS)
        broker.pause()
        await other.publish(name(NEWS), b"kept")
        loop = asyncio.get_running_loop()
        over = loop.time() + 2.0
        while loop.time() < over:  # a silence and a deadline
            assert not broker.is_redis_unverified
            await asyncio.sleep(0.02)
        assert heard.publications == []
        broker.resume()
        await heard.until(lambda: heard.publications == [(NEWS, b"kept")])
        assert heard.interruptions == 0


async def test_what_has_arrived_is_delivered_without_the_event_loop(server: AnyServer) -> None:
    async def publish() -> None:
        client = server.client()
        await client.publish(name(NEWS), b"now")
        await client.aclose()

    async with open_broker(server.url) as (broker, heard):
        await broker.subscribe(NEWS)
        for read_now, expected in ((broker.read_now, [(NEWS, b"now")]), (lambda: None, [])):
            thread = threading.Thread(target=asyncio.run, args=(publish(),))
            thread.start()
            thread.join(30.0)
            end_s = time.monotonic() + (30.0 if expected else 0.2)
            while heard.publications != expected and time.monotonic() < end_s:
                read_now()
            assert heard.publications == expected
            await heard.until(lambda: len(heard.publications) == 1)
            heard.publications.clear()
        broker.pause()
        thread = threading.Thread(target=asyncio.run, args=(publish(),))
        thread.start()
        thread.join(30.0)
        broker.read_now()
        assert heard.publications == []
        broker.resume()
        await heard.until(lambda: heard.publications == [(NEWS, b"now")])


async def test_silence_alone_keeps_redis_verified(server: AnyServer) -> None:
    async with open_broker(server.url, silence_s=0.2, deadline_s=1.0) as (broker, heard):
        loop = asyncio.get_running_loop()
        over = loop.time() + 1.0
        while loop.time() < over:  # five canaries
            assert not broker.is_redis_unverified
            await asyncio.sleep(0.02)
        assert heard.interruptions == 0


async def test_stop_ends_all_and_later_calls_fail_at_once(server: AnyServer, other: Any) -> None:
    async with open_broker(server.url) as (broker, _):
        await broker.subscribe(NEWS)
        pending = asyncio.ensure_future(broker.subscribe("pubsub:pending"))
        await broker.stop()
        await broker.stop()
        assert broker.is_redis_unverified
        with pytest.raises(BrokerUnavailable):
            await broker.publish(NEWS, b"late")
        with pytest.raises(BrokerUnavailable):
            await broker.subscribe(NEWS)
        await asyncio.gather(pending, return_exceptions=True)

        async def is_gone() -> bool:
            return await subscribers(other, NEWS) == 0

        await eventually(is_gone, within_s=30, what="the connection is closed")


async def test_a_listener_that_fails_does_not_stop_delivery(server: AnyServer) -> None:
    class Failing(Recorder):
        def on_publications(self, batch: Any) -> None:
            super().on_publications(batch)
            raise RuntimeError("a bug of the node")

    async with open_broker(server.url, listener=Failing()) as (broker, heard):
        await broker.subscribe(NEWS)
        for number in range(3):
            assert await broker.publish(NEWS, b"%d" % number) == 1
        await heard.until(lambda: heard.of(NEWS) == [b"0", b"1", b"2"])
        assert heard.interruptions == 0
