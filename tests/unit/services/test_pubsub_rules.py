"""Pub/sub by rules: history, recovery, idempotency keys, presence; on nodes that share history and directory."""

from typing import Any

import pytest

from snorky.gateway import ConfigurationError, ServiceRegistry
from snorky.services.pubsub import PubSubBackend, PubSubService
from snorky.services.rpc import Request
from tests.support.fakes.fake_wire import settle
from tests.support.fakes.memory_cluster import Resident, Town, town
from tests.support.scenarios.pubsub_rules import CHANNELS, ask, publish, services, texts


def backend(nodes: Town, number: int = 0) -> Resident:
    private = ServiceRegistry([PubSubBackend()])
    nodes.nodes[number].attach(private)
    return Resident(nodes.nodes[number], private, None)


def told(client: Resident) -> list[Any]:
    return [each["message"] for each in client.notifications if each["type"] == "message"]


# -- permissions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "channel"),
    [("history", "bare"), ("history", "quiet:a"), ("presence", "kept:a"), ("presenceStats", "kept:a")],
)
async def test_features_without_a_rule_are_not_authorized(command: str, channel: str) -> None:
    async with town(1, services) as nodes:
        assert await ask(nodes.client(0), command, channel) == "Error: Not authorized"


@pytest.mark.parametrize("command", ["subscribe", "history", "presence", "presenceStats"])
async def test_client_that_may_not_subscribe_may_not_read_the_channel(command: str) -> None:
    class Closed(PubSubService):
        async def can_subscribe(self, request: Request, channel: Any) -> bool:
            return request.identity == "ann"

    async with town(1, lambda: [Closed(channels=CHANNELS)]) as nodes:
        assert await ask(nodes.client(0, "bob"), command, "room:a") == "Error: Not authorized"
        assert await ask(nodes.client(0, "ann"), command, "room:a") != "Error: Not authorized"
        assert await nodes.nodes[0].ownership.directory.members("pubsub:room:a") == [] or command == "subscribe"


async def test_clients_have_keys_where_the_rule_allows_and_the_backend_always() -> None:
    async with town(1, services) as nodes:
        client = nodes.client(0)
        assert await ask(client, "publish", "keyless", message=1) is None
        assert await ask(client, "publish", "keyless", message=1, key="k") == "Error: Not authorized"
        assert await ask(client, "publish", "other", message=1, key="k") is None
        private = backend(nodes)
        assert await private.ask("pubsub_backend", "publish", channel="keyless", message=2, key="k") is None


async def test_only_the_backend_publishes_where_clients_may_not() -> None:
    async with town(1, services) as nodes:
        client = nodes.client(0)
        await ask(client, "subscribe", "news")
        assert await ask(client, "publish", "news", message=1) == "Error: Not authorized"
        assert await backend(nodes).ask("pubsub_backend", "publish", channel="news", message=2) is None
        await client.notified(1)
        assert told(client) == [2]


async def test_backend_publishes_with_the_history_of_the_rule() -> None:
    async with town(1, services) as nodes:
        await backend(nodes).ask("pubsub_backend", "publish", channel="kept:a", message={"x": 1})
        assert texts(await ask(nodes.client(0), "history")) == [{"x": 1}]


def test_rules_are_read_when_the_service_is_made() -> None:
    service = PubSubService(channels=[{"match": "a", "history": 3}])
    assert [rule.history for rule in service.rules] == [3]
    with pytest.raises(ConfigurationError, match="channels, rule 1"):
        PubSubService(channels=[{"match": "a", "histroy": 3}])


# -- idempotency keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["kept:a", "bare"])
async def test_an_identity_publishes_once_under_a_key_from_wherever(channel: str) -> None:
    async with town(2, services) as nodes:
        listener = nodes.client(0)
        await ask(listener, "subscribe", channel)
        for number in range(4):
            assert await ask(nodes.client(number, "ann"), "publish", channel, message=number, key="k") is None
        await ask(nodes.client(0, "ann"), "publish", channel, message="other", key="l")
        await listener.notified(2)
        await settle()
        assert told(listener) == [0, "other"]


@pytest.mark.parametrize("channel", ["kept:a", "bare"])
async def test_keys_of_two_users_never_collide(channel: str) -> None:
    """Also of identities that look like others with their keys, and of anonymous clients."""
    async with town(1, services) as nodes:
        listener = nodes.client(0)
        await ask(listener, "subscribe", channel)
        senders = [("ann", "k"), ("bob", "k"), ("ann k", "k"), ("ann", "k k"), ("", "k"), (None, "k"), (None, "k")]
        for number, (identity, key) in enumerate(senders):
            await ask(nodes.client(0, identity), "publish", channel, message=number, key=key)
        forged = nodes.client(0, None)
        await ask(forged, "publish", channel, message=7, key="identity ann k")
        await backend(nodes).ask("pubsub_backend", "publish", channel=channel, message=8, key="k")
        await listener.notified(9)
        await settle()
        assert sorted(told(listener)) == list(range(9))


@pytest.mark.parametrize("channel", ["kept:a", "bare"])
async def test_keys_of_two_channels_never_collide(channel: str) -> None:
    async with town(1, services) as nodes:
        listener, ann = nodes.client(0), nodes.client(0, "ann")
        for each in (channel, channel + "2"):
            await ask(listener, "subscribe", each)
            await ask(ann, "publish", each, message=each, key="k")
        await listener.notified(2)


async def test_backend_publishes_once_under_a_key() -> None:
    async with town(1, services) as nodes:
        listener, private = nodes.client(0), backend(nodes)
        await ask(listener, "subscribe")
        for number in (1, 1, 2):
            await private.ask("pubsub_backend", "publish", channel="kept:a", message=number, key=f"k{number}")
        await listener.notified(2)
        await settle()
        assert told(listener) == [1, 2]


@pytest.mark.parametrize("key", ["", "k" * 256, "é" * 128, 5, True, [], {}])
async def test_an_invalid_key_is_an_error(key: Any) -> None:
    async with town(1, services) as nodes:
        assert await ask(nodes.client(0), "publish", message=1, key=key) == "Error: Invalid params"
        assert await backend(nodes).ask("pubsub_backend", "publish", channel="a", message=1, key=key) == (
            "Error: Invalid params"
        )
        assert nodes.bus.published == []


# -- presence ------------------------------------------------------------------------------------------------------


async def test_presence_lists_subscribers_of_all_nodes() -> None:
    async with town(3, services) as nodes:
        ann, ann_too, bob = nodes.client(0, "ann"), nodes.client(1, "ann"), nodes.client(2, "bob")
        stranger = nodes.client(1)
        for client in (ann, ann_too, bob, stranger):
            await ask(client, "subscribe", "quiet:a")
        outsider = nodes.client(2)
        everybody = sorted(["ann", "bob", stranger.connection.id])
        assert await ask(outsider, "presence", "quiet:a") == {"members": everybody}
        assert await ask(outsider, "presenceStats", "quiet:a") == {"members": 3, "connections": 4}
        await ask(ann, "unsubscribe", "quiet:a")
        stranger.leave()
        await settle(50)
        assert await ask(outsider, "presenceStats", "quiet:a") == {"members": 2, "connections": 2}
        assert bob.notifications == []  # no subscriber asked for notices


async def test_notices_reach_the_others_once_per_identity() -> None:
    async with town(2, services) as nodes:
        watcher, recovering = nodes.client(0, "watcher"), nodes.client(1, "recovering")
        await ask(watcher, "subscribe", "room:a")
        await ask(recovering, "subscribe", "room:a", recover=True)
        bob, bob_too = nodes.client(0, "bob"), nodes.client(1, "bob")
        for client in (bob, bob_too):
            await ask(client, "subscribe", "room:a")
        await publish(bob, "hello", channel="room:a")
        bob.leave()
        await settle(50)
        assert await ask(bob_too, "leave", "room:a") is None
        joined, left = ({"type": kind, "channel": "room:a", "identity": "bob"} for kind in ("joined", "left"))
        await watcher.hears(left)
        await recovering.hears(left)
        kinds = [each["type"] for each in watcher.notifications]
        assert kinds == ["joined", "joined", "message", "left"]
        assert watcher.notifications[1] == joined
        assert [each for each in recovering.notifications if each["type"] != "message"] == [joined, left]
        assert [each["type"] for each in bob_too.notifications] == ["message"]
        assert all(each["service"] == "pubsub" for each in watcher.envelopes)


async def test_failed_subscribe_adds_no_presence_and_removes_none() -> None:
    async with town(1, services) as nodes:
        client, outsider = nodes.client(0, "ann"), nodes.client(0)
        await ask(client, "subscribe", "quiet:a")
        assert await ask(client, "subscribe", "quiet:a") == "Error: Already subscribed"
        assert await ask(outsider, "presence", "quiet:a") == {"members": ["ann"]}
        nodes.brokers[0].is_failing = True
        for recover in (None, True):
            answer = await ask(nodes.client(0, "bob"), "subscribe", "room:b", recover=recover)
            assert answer == "Error: Temporarily unavailable"
        nodes.brokers[0].is_failing = False
        assert await ask(outsider, "presence", "room:b") == {"members": []}


async def test_presence_of_too_many_is_refused_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snorky.services.pubsub.clients.MEMBERS_MAX", 3)
    async with town(1, services) as nodes:
        for number in range(4):
            assert "Error" not in str(await ask(nodes.client(0), "presence", "quiet:a")), number
            await ask(nodes.client(0, f"i{number}"), "subscribe", "quiet:a")
        assert await ask(nodes.client(0), "presence", "quiet:a") == "Error: Too many members"
        assert await ask(nodes.client(0), "presenceStats", "quiet:a") == {"members": 4, "connections": 4}
