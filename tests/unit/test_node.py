"""The node as services see it: subscriptions that succeed or leave nothing behind, publications, disconnects."""

import pytest

from snorky.gateway import (
    BrokerUnavailable,
    InvalidChannel,
    InvalidMessage,
    Limits,
    Node,
)
from snorky.gateway.config.limits import PAYLOAD_MAX_BYTES
from snorky.gateway.protocol.publication import TooLarge
from snorky.gateway.testing.broker import LoopbackBroker
from tests.support.fakes.fake_wire import JSON, FakeTransport, house, settle
from tests.support.scenarios.quiet_service import Quiet, subscribe

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
    ids = {each.new_connection(FakeTransport(), JSON).id for each in (node, other) for _ in range(100)}
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
