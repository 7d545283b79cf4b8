"""The node as services see it: subscriptions that succeed or leave nothing behind, publications, disconnects."""

import asyncio
from typing import Any

import pytest

from snorky.gateway import (
    PAYLOAD,
    AlreadySubscribed,
    BrokerUnavailable,
    Connection,
    ConnectionClosed,
    InvalidChannel,
    InvalidMessage,
    LimitExceeded,
    Limits,
    Node,
    NotSubscribed,
    Service,
)
from snorky.gateway.config.settings import PAYLOAD_MAX_BYTES
from snorky.gateway.protocol.publication import TooLarge
from tests.support.fakes.fake_wire import JSON, FakeWire, House, house, settle, until
from tests.support.fakes.loopback import LoopbackBroker


def bare(channel: Any) -> Any:
    """Shape a notification: only the payload."""
    return PAYLOAD


class Quiet(Service):
    def __init__(self, name: str = "quiet") -> None:
        super().__init__(name)
        self.heard: list[tuple[str, Connection]] = []

    def on_message(self, connection: Connection, message: Any) -> None:
        return None

    def on_connect(self, connection: Connection) -> None:
        self.heard.append(("connect", connection))

    def on_disconnect(self, connection: Connection) -> None:
        self.heard.append(("disconnect", connection))


def subscribe(built: House, connection: Connection, channel: Any = "news") -> "asyncio.Task[None]":
    return asyncio.ensure_future(built.node.channels.subscribe(connection, "quiet", channel, bare))


def nothing_is_left(built: House) -> bool:
    return built.node.counts["subscriptions"] == built.node.counts["channels"] == 0 and not built.broker.subscribed


# -- subscribe --------------------------------------------------------------------------------------------------


async def test_subscribe_returns_when_the_broker_confirmed_and_not_before() -> None:
    async with house(Quiet()) as built:
        built.broker.gate.clear()
        task = subscribe(built, built.client().connection)
        await settle()
        assert not task.done()
        built.broker.gate.set()
        await task
        assert built.broker.subscribed == {"quiet:news"}


async def test_failed_subscribe_leaves_no_state() -> None:
    async with house(Quiet()) as built:
        client = built.client()
        built.broker.is_failing = True
        with pytest.raises(BrokerUnavailable):
            await subscribe(built, client.connection)
        assert nothing_is_left(built)
        assert not client.connection.channels
        assert built.broker.unsubscribed == ["quiet:news"]
        built.broker.is_failing = False
        await subscribe(built, client.connection)
        assert client.connection.channels == {"quiet:news"}


async def test_cancelled_subscribe_leaves_no_state() -> None:
    async with house(Quiet()) as built:
        client = built.client()
        built.broker.gate.clear()
        task = subscribe(built, client.connection)
        await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert nothing_is_left(built)
        assert not client.connection.channels


async def test_client_that_leaves_while_subscribing_leaves_no_state() -> None:
    """Also if the subscriber itself is not cancelled: a service may subscribe in a task of its own."""
    async with house(Quiet()) as built:
        client = built.client()
        built.broker.gate.clear()
        task = subscribe(built, client.connection)
        await settle()
        client.leave()
        built.broker.gate.set()
        with pytest.raises(ConnectionClosed):
            await task
        assert nothing_is_left(built)
        assert not client.connection.channels


async def test_client_that_leaves_does_not_unsubscribe_the_others() -> None:
    async with house(Quiet()) as built:
        leaver, stayer = built.client(), built.client()
        built.broker.gate.clear()
        tasks = [subscribe(built, each.connection) for each in (leaver, stayer)]
        await settle()
        leaver.leave()
        built.broker.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert built.broker.subscribed == {"quiet:news"}
        assert built.broker.unsubscribed == []
        built.node.channels.publish("quiet", "news", 1)
        assert await stayer.received(1) == [1]
        assert leaver.messages == []


class HoldingBroker(LoopbackBroker):
    """A channel is kept for callers of `subscribe`, as with Redis: a second subscriber alone keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[str] = set()

    async def subscribe(self, key: str) -> None:
        if key in self.subscribed:
            self.held.add(key)
            return
        try:
            await self.gate.wait()
            self.subscribed.add(key)
            await asyncio.sleep(0)  # the confirmation has arrived, and its waiter has not run yet
            self.held.add(key)
        finally:
            if key not in self.held:
                self.subscribed.discard(key)


async def test_channel_confirmed_for_a_cancelled_caller_is_kept_for_a_later_one() -> None:
    async with house(Quiet(), broker=HoldingBroker()) as built:
        first, second = built.client(), built.client()
        built.broker.gate.clear()
        task = subscribe(built, first.connection)
        await settle()
        built.broker.gate.set()
        await until(lambda: built.broker.is_subscribed("quiet:news"))
        await built.node.channels.subscribe(second.connection, "quiet", "news", bare)
        task.cancel()
        first.leave()
        await asyncio.gather(task, return_exceptions=True)
        assert built.broker.subscribed == {"quiet:news"}
        built.node.channels.publish("quiet", "news", 1)
        assert await second.received(1) == [1]


async def test_failure_of_one_of_two_does_not_affect_the_other() -> None:
    class FailsOnce(LoopbackBroker):
        calls = 0

        async def subscribe(self, key: str) -> None:
            self.calls += 1
            call = self.calls
            await self.gate.wait()
            if call == 1:
                raise BrokerUnavailable(key)
            self.subscribed.add(key)

    async with house(Quiet(), broker=FailsOnce()) as built:
        first, second = built.client(), built.client()
        built.broker.gate.clear()
        tasks = [subscribe(built, each.connection) for each in (first, second)]
        await settle()
        built.broker.gate.set()
        failed, succeeded = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(failed, BrokerUnavailable)
        assert succeeded is None
        assert not first.connection.channels
        assert built.broker.unsubscribed == []
        built.node.channels.publish("quiet", "news", 1)
        assert await second.received(1) == [1]
        assert first.messages == []


async def test_unsubscribe_during_subscribe_is_an_error_and_releases_the_channel() -> None:
    async with house(Quiet()) as built:
        client = built.client()
        built.broker.gate.clear()
        task = subscribe(built, client.connection)
        await settle()
        built.node.channels.unsubscribe(client.connection, "quiet", "news")
        built.broker.gate.set()
        with pytest.raises(NotSubscribed):
            await task
        assert nothing_is_left(built)


async def test_second_subscribe_is_refused_also_while_the_first_is_under_way() -> None:
    async with house(Quiet()) as built:
        client = built.client()
        built.broker.gate.clear()
        task = subscribe(built, client.connection)
        await settle()
        with pytest.raises(AlreadySubscribed):
            await built.node.channels.subscribe(client.connection, "quiet", "news", bare)
        built.broker.gate.set()
        await task
        with pytest.raises(AlreadySubscribed):
            await built.node.channels.subscribe(client.connection, "quiet", "news", bare)
        assert client.connection.channels == {"quiet:news"}


async def test_closed_connection_does_not_subscribe() -> None:
    async with house(Quiet()) as built:
        client = built.client()
        client.connection.close(1000)
        with pytest.raises(ConnectionClosed):
            await subscribe(built, client.connection)
        assert nothing_is_left(built)


async def test_connection_without_a_later_disconnect_does_not_subscribe() -> None:
    """A backend's request has a connection while it runs; in the hub it would stay indefinitely."""
    async with house(Quiet()) as built:
        connection = built.node.new_connection(FakeWire(), JSON)
        with pytest.raises(ConnectionClosed):
            await subscribe(built, connection)
        assert nothing_is_left(built)


async def test_channel_that_has_no_name_is_refused() -> None:
    async with house(Quiet()) as built:
        with pytest.raises(InvalidChannel):
            await subscribe(built, built.client().connection, "x" * 300)
        assert nothing_is_left(built)


async def test_notification_is_shaped_once_per_channel_and_again_after_its_end() -> None:
    shaped: list[Any] = []

    def shape(channel: Any) -> Any:
        shaped.append(channel)
        return PAYLOAD

    async with house(Quiet()) as built:
        for _ in range(2):
            clients = [built.client() for _ in range(3)]
            for client in clients:
                await built.node.channels.subscribe(client.connection, "quiet", "news", shape)
            for client in clients:
                client.leave()
        assert shaped == ["news", "news"]


# -- limit of channels ------------------------------------------------------------------------------------------


async def test_limit_of_channels_counts_those_under_way_and_frees_with_unsubscribe() -> None:
    async with house(Quiet(), limits=Limits(channels_per_connection=3)) as built:
        client = built.client()
        built.broker.gate.clear()
        tasks = [subscribe(built, client.connection, f"c{number}") for number in range(10)]
        await settle()
        built.broker.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in results] == [type(None)] * 3 + [LimitExceeded] * 7
        assert built.sample("snorky_limit_hits_total", limit="channels_per_connection") == 7
        with pytest.raises(AlreadySubscribed):  # reports the actual error, not that a limit is reached
            await subscribe(built, client.connection, "c0")
        built.node.channels.unsubscribe(client.connection, "quiet", "c0")
        await subscribe(built, client.connection, "c9")
        assert len(client.connection.channels) == 3


async def test_limit_of_channels_is_each_connections_own() -> None:
    async with house(Quiet(), limits=Limits(channels_per_connection=1)) as built:
        await subscribe(built, built.client().connection)
        await subscribe(built, built.client().connection)
        assert built.node.counts["subscriptions"] == 2


# -- unsubscribe ------------------------------------------------------------------------------------------------


async def test_broker_unsubscribes_once_with_the_last_subscriber() -> None:
    async with house(Quiet()) as built:
        one, other = built.client(), built.client()
        for client in (one, other):
            await subscribe(built, client.connection)
        built.node.channels.unsubscribe(one.connection, "quiet", "news")
        assert built.broker.unsubscribed == []
        built.node.channels.unsubscribe(other.connection, "quiet", "news")
        assert built.broker.unsubscribed == ["quiet:news"]
        with pytest.raises(NotSubscribed):
            built.node.channels.unsubscribe(other.connection, "quiet", "news")
        for client in (one, other):
            client.leave()
        assert built.broker.unsubscribed == ["quiet:news"]


async def test_disconnect_releases_exactly_the_channels_without_other_subscribers() -> None:
    async with house(Quiet()) as built:
        one, other = built.client(), built.client()
        for channel in ("a", "b", "c"):
            await subscribe(built, one.connection, channel)
        await subscribe(built, other.connection, "b")
        one.leave()
        one.leave()
        assert sorted(built.broker.unsubscribed) == ["quiet:a", "quiet:c"]
        assert built.node.counts == {"connections": 1, "subscriptions": 1, "channels": 1}


# -- publish ----------------------------------------------------------------------------------------------------


async def test_publication_reaches_every_subscriber_once_and_by_way_of_the_broker() -> None:
    async with house(Quiet()) as built:
        clients = [built.client() for _ in range(3)]
        for client in clients:
            await subscribe(built, client.connection)
        future = built.node.channels.publish("quiet", "news", {"x": 1})
        assert all(client.messages == [] for client in clients), "delivered past the broker"
        assert await future == 1
        for client in clients:
            assert await client.received(1) == [{"x": 1}]
        await settle()
        assert all(len(client.messages) == 1 for client in clients)
        assert built.broker.published == [("quiet:news", b'{"x":1}')]


async def test_publish_error_is_the_callers() -> None:
    async with house(Quiet()) as built:
        built.broker.is_failing = True
        with pytest.raises(BrokerUnavailable) as caught:
            await built.node.channels.publish("quiet", "news", 1)
        assert caught.value.retry_after_ms is not None
        built.node.channels.publish("quiet", "news", 1)  # no caller awaits this publish, and no subscriber gets it


async def test_invalid_message_or_channel_is_refused_before_the_broker() -> None:
    async with house(Quiet()) as built:
        for bad in (float("nan"), b"bytes", {1: 2}, object(), "\ud800", 2**64):
            with pytest.raises(InvalidMessage):
                built.node.channels.publish("quiet", "news", bad)
        for bad in ("x" * 300, "\ud800", 2**53, float("inf")):
            with pytest.raises(InvalidChannel):
                built.node.channels.publish("quiet", bad, 1)
        assert built.broker.published == []
        assert built.sample("snorky_publications_published_total") == 0


async def test_publication_that_nodes_would_drop_is_refused_before_the_broker() -> None:
    async with house(Quiet(), limits=Limits(message_max_bytes=64)) as built:
        largest = "x" * (PAYLOAD_MAX_BYTES - 2)
        await built.node.channels.publish("quiet", "news", largest)
        with pytest.raises(TooLarge, match="larger than 1048576 bytes"):
            built.node.channels.publish("quiet", "news", largest + "x")
        assert (
            built.node.metrics.registry.get_sample_value("snorky_limit_hits_total", {"limit": "payload_max_bytes"}) == 1
        )
    async with house(Quiet(), limits=Limits(message_max_bytes=2 << 20, outbox_max_bytes=2 << 20)) as built:
        await built.node.channels.publish("quiet", "news", largest + "x")


async def test_lag_is_timed_for_publications_of_this_node_with_local_subscribers() -> None:
    async with house(Quiet()) as built:
        client = built.client()
        await subscribe(built, client.connection)
        built.node.channels.publish("quiet", "elsewhere", 1)
        built.broker.bring(("quiet:news", b"0"))
        await settle()
        assert built.sample("snorky_delivery_latency_seconds_count") == 0
        built.node.channels.publish("quiet", "news", 2)
        await client.received(2)
        assert built.sample("snorky_delivery_latency_seconds_count") == 1


# -- connections ------------------------------------------------------------------------------------------------


async def test_services_are_notified_once_of_connect_and_disconnect() -> None:
    quiet = Quiet()
    async with house(quiet) as built:
        client = built.client()
        client.leave()
        client.leave()
        assert quiet.heard == [("connect", client.connection), ("disconnect", client.connection)]


async def test_counts_return_to_zero() -> None:
    async with house(Quiet()) as built:
        for code in (1000, 1006, 4008, 4711):
            client = built.client()
            await subscribe(built, client.connection)
            assert built.sample("snorky_connections", transport="websocket", encoding="json") == 1
            assert built.sample("snorky_subscriptions") == built.sample("snorky_channels") == 1
            client.leave(code)
        assert built.node.counts == {"connections": 0, "subscriptions": 0, "channels": 0}
        assert built.sample("snorky_connections", transport="websocket", encoding="json") == 0
        assert built.sample("snorky_subscriptions") == built.sample("snorky_channels") == 0
        for label in ("1000", "1006", "4008", "other"):
            assert built.sample("snorky_connections_closed_total", code=label) == 1


async def test_closed_client_is_not_written_to() -> None:
    async with house(Quiet()) as built:
        client = built.client()
        await subscribe(built, client.connection)
        client.leave()
        client.connection.send({"service": "quiet", "message": 1})
        built.broker.bring(("quiet:news", b"1"))
        assert client.wire.writes == []


def test_connections_have_addresses_of_their_own() -> None:
    node, other = Node(LoopbackBroker()), Node(LoopbackBroker())
    ids = {each.new_connection(FakeWire(), JSON).id for each in (node, other) for _ in range(100)}
    assert len(ids) == 200


def test_ready_only_while_hearing_and_not_draining() -> None:
    broker = LoopbackBroker()
    node = Node(broker)
    assert node.is_ready
    broker.is_redis_unverified = True
    assert not node.is_ready
    assert node.is_redis_unverified
    broker.is_redis_unverified = False
    node.is_draining = True
    assert not node.is_ready
    assert not node.is_redis_unverified
