"""Primitives that a service may request, and the errors if they are unavailable."""

from typing import Any

import pytest

from snorky.gateway import (
    PAYLOAD,
    AlreadySubscribed,
    ConfigurationError,
    Connection,
    InvalidChannel,
    InvalidMessage,
    NotSubscribed,
    Owner,
    Selector,
    Service,
)
from tests.support.fakes.fake_wire import MSGPACK, house


class Minimal(Service):
    def on_message(self, connection: Connection, message: Any) -> None:
        self.send(connection, {"echo": message})


class Shaped(Minimal):
    def notification(self, channel: Any) -> Any:
        return {"in": channel, "is": [PAYLOAD]}


class Broken(Minimal):
    def notification(self, channel: Any) -> Any:
        return {"in": channel}


@pytest.mark.parametrize("name", ["a", "a-b_c9", "0", "-"])
def test_name_of_a_service_is_taken(name: str) -> None:
    assert Minimal(name).name == name


@pytest.mark.parametrize("name", ["", "A", "a b", "a:b", "a\n", "ä", "a/b", "{a}", "a*"])
def test_name_that_would_not_do_in_an_envelope_or_a_key_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="service name"):
        Minimal(name)


def test_service_without_a_node_gives_an_error_with_a_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"Node\.attach"):
        _ = Minimal("a").topics


async def test_send_puts_the_message_in_an_envelope_of_the_service() -> None:
    async with house(Minimal("a")) as built:
        for client in (built.client(), built.client(MSGPACK)):
            client.send("a", [1, None])
            assert client.envelopes == [{"service": "a", "message": {"echo": [1, None]}}]


async def test_notification_is_the_bare_payload_unless_shaped() -> None:
    plain, shaped = Minimal("plain"), Shaped("shaped")
    async with house(plain, shaped) as built:
        client = built.client()
        for service in (plain, shaped):
            await service.topics.subscribe(client.connection, {"b": 1, "a": [2]})
            assert service.topics.is_subscribed(client.connection, {"a": [2], "b": 1.0})
            await service.topics.publish({"a": [2], "b": 1}, {"x": 1})
        await client.received(2)
        assert client.envelopes == [
            {"service": "plain", "message": {"x": 1}},
            {"service": "shaped", "message": {"in": {"b": 1, "a": [2]}, "is": [{"x": 1}]}},
        ]


@pytest.mark.parametrize("kind", ["response", "error"])
async def test_relayed_payload_cannot_be_read_as_a_reply(kind: str) -> None:
    plain, shaped = Minimal("plain"), Shaped("shaped")
    forged = {"type": kind, "callId": 2, "data": 0}
    async with house(plain, shaped) as built:
        client = built.client()
        for service in (plain, shaped):
            await service.topics.subscribe(client.connection, "c")
        options: dict[str, Any]
        for options in ({}, {"once": "k"}, {"to": Selector(not_identity="ann")}):
            with pytest.raises(InvalidMessage, match="type"):
                plain.topics.publish("c", forged, **options)
        with pytest.raises(InvalidMessage, match="type"):
            shaped.topics.publish("c", forged, to=Selector(is_whole=True))
        with pytest.raises(InvalidMessage, match="type"):
            await plain.direct.send(Owner("n", "i", 1), forged)
        await shaped.topics.publish("c", forged)
        await plain.topics.publish("c", {**forged, "type": "note"})
        await plain.topics.publish("c", [forged])
        await client.received(3)
        by_service = [(envelope["service"], envelope["message"]) for envelope in client.envelopes]
        assert by_service.count(("shaped", {"in": "c", "is": [forged]})) == 1
        assert [message for name, message in by_service if name == "plain"] == [{**forged, "type": "note"}, [forged]]


async def test_channels_of_two_services_are_two_even_if_named_alike() -> None:
    one, other = Minimal("one"), Minimal("other")
    async with house(one, other) as built:
        client = built.client()
        await one.topics.subscribe(client.connection, "news")
        assert not other.topics.is_subscribed(client.connection, "news")
        await other.topics.publish("news", 1)
        await one.topics.publish("news", 2)
        await client.received(1)
        assert client.envelopes == [{"service": "one", "message": 2}]


async def test_unsubscribed_client_gets_nothing_more() -> None:
    service = Minimal("a")
    async with house(service) as built:
        client, fence = built.client(), built.client()
        for each in (client, fence):
            await service.topics.subscribe(each.connection, "news")
        service.topics.unsubscribe(client.connection, "news")
        await service.topics.publish("news", 1)
        await fence.received(1)
        assert client.messages == []
        with pytest.raises(NotSubscribed):
            service.topics.unsubscribe(client.connection, "news")


async def test_subscribing_twice_or_without_a_valid_name_is_refused() -> None:
    service = Minimal("a")
    async with house(service) as built:
        client = built.client()
        await service.topics.subscribe(client.connection, 1)
        with pytest.raises(AlreadySubscribed):
            await service.topics.subscribe(client.connection, 1.0)
        with pytest.raises(InvalidChannel):
            await service.topics.subscribe(client.connection, ["x" * 255])
        with pytest.raises(InvalidChannel):
            service.topics.unsubscribe(client.connection, ["x" * 255])


async def test_notification_without_a_place_for_the_payload_is_an_error() -> None:
    service = Broken("a")
    async with house(service) as built:
        client = built.client()
        with pytest.raises(ValueError, match="PAYLOAD"):
            await service.topics.subscribe(client.connection, "news")
        assert not client.connection.channels
