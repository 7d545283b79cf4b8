"""Pusher's cache channels and client events, and the command `relay` of Snorky's own clients."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest

from snorky.client.aio import Publisher
from snorky.gateway.node import Node
from snorky.gateway.protocol.publication import Position, Publication
from tests.support.clients.any_protocol import DEADLINE_S, AnyClient, opened
from tests.support.clients.pusher import KEY, SECRET, PusherClient, SubscriptionFailed, connected, member
from tests.support.processes.tools import eventually
from tests.support.scenarios.losses import losing
from tests.support.scenarios.protocol_nodes import NEWS, Nodes

RULES: Final = [
    {"match": "cache-*", "allow_subscribe": "anyone"},
    {"match": "private-kept", "history": 10},
    {"match": "private-read", "allow_publish": "nobody"},
    {"match": "private-open", "allow_publish": "anyone"},
    {"match": "kept.*", "history": 10, "allow_subscribe": "anyone", "allow_publish": "anyone"},
    {"match": "read", "allow_subscribe": "anyone", "allow_publish": "nobody"},
    {"match": "*", "allow_subscribe": "anyone", "allow_publish": "anyone"},
]
ENV = {"SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES)}
CACHES = ("cache-a", "private-cache-a", "private-encrypted-cache-a", "presence-cache-a")


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start(**ENV)


def data_for(channel: str, user: str = "ann") -> str | None:
    return member(user) if channel.startswith("presence-") else None


def event(number: int, channel: str) -> dict[str, Any]:
    """Make the event number N as a client receives it."""
    return {"event": "e", "channel": channel, "data": str(number)}


async def publish(nodes: Nodes, channel: str, numbers: Sequence[int]) -> None:
    """Publish events by a node, as the HTTP API does."""
    service: Any = nodes.gateways[0].node.find_service("pubsub")
    for number in numbers:
        await service.published(channel, {"event": "e", "data": str(number)})


# -- cache channels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", CACHES)
async def test_last_event_follows_the_success_and_there_may_be_none(nodes: Nodes, url: str, channel: str) -> None:
    other_url = await nodes.start(**ENV)
    async with connected(url) as first, connected(other_url) as second:
        await first.ask(channel, data_for(channel))
        miss = {"event": "pusher:cache_miss", "channel": channel, "data": ""}
        assert [each["event"] for each in await _until(first, 2)] == [
            "pusher_internal:subscription_succeeded",
            "pusher:cache_miss",
        ]
        assert first.heard.pop() == miss
        await publish(nodes, channel, range(3))
        for number in range(3):
            assert await first.event("e") == event(number, channel)
        await second.ask(channel, data_for(channel))
        assert [each["event"] for each in await _until(second, 2)] == ["pusher_internal:subscription_succeeded", "e"]
        assert second.heard.pop() == event(2, channel)
        await publish(nodes, channel, [3])
        assert await second.event("e") == event(3, channel)
        second.heard.clear()
        assert await second.fence() == []


async def _until(client: PusherClient, count: int) -> list[dict[str, Any]]:
    """Wait until a client has heard this many events."""
    async with asyncio.timeout(DEADLINE_S):
        while len(client.heard) < count:
            await client._hear()
    return client.heard


@pytest.mark.parametrize("channel", ["news", "private-a", "private-kept", "presence-a", "private-presence-cache-a"])
async def test_other_channels_replay_nothing_and_miss_nothing(nodes: Nodes, url: str, channel: str) -> None:
    await publish(nodes, channel, [1])
    async with connected(url) as client:
        await client.subscribe(channel, data_for(channel))
        assert await client.fence() == []


async def test_message_that_is_no_event_is_kept_too(nodes: Nodes, url: str) -> None:
    async with Publisher(nodes.redis_url) as publisher:
        await publisher.publish("cache-a", {"id": 7})
    async with connected(url) as client:
        await client.subscribe("cache-a")
        assert (await client.event("message"))["data"] == '{"id":7}'


async def test_client_that_comes_back_gets_the_last_event_again(nodes: Nodes, url: str) -> None:
    await publish(nodes, "cache-a", [1])
    async with connected(url) as client:
        for _ in range(2):
            await client.subscribe("cache-a")
            assert await client.event("e") == event(1, "cache-a")
            await client.unsubscribe("cache-a")


@pytest.mark.parametrize("channel", CACHES)
async def test_event_that_is_published_while_a_client_subscribes_comes_once(
    nodes: Nodes, url: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two steps of a subscription: from here on it is notified, and this is the last event."""
    await publish(nodes, channel, [1])
    node = nodes.gateways[0].node
    monkeypatch.setattr(node.channels.history_store, "recent", _publishing_before(node, channel))
    async with connected(url) as client:
        await client.subscribe(channel, data_for(channel))
        client.heard.clear()
        await publish(nodes, channel, [4])
        assert await client.event("e") == event(2, channel)
        assert await client.event("e") == event(3, channel)
        assert await client.event("e") == event(4, channel)
        assert await client.fence() == []


async def test_client_of_a_node_that_missed_an_event_gets_the_next_ones(nodes: Nodes) -> None:
    """This protocol cannot say that one is missing, so the subscription stays."""
    rules = [{"match": "cache-*", "allow_subscribe": "anyone", "history": 1}]
    url = await nodes.start(SNORKY_SERVICES__PUBSUB__CHANNELS=json.dumps(rules))
    async with connected(url) as client:
        await client.subscribe("cache-a")
        await client.event("pusher:cache_miss")
        async with losing(nodes.gateways[0].node, "cache-a"):
            await publish(nodes, "cache-a", [1])
        await publish(nodes, "cache-a", [2])
        assert await client.event("e") == event(2, "cache-a")
        await publish(nodes, "cache-a", [3])
        assert await client.event("e") == event(3, "cache-a")
        assert await client.fence() == []


def _publishing_before(node: Node, channel: str) -> Any:
    """Return `recent` of a node's history, which publishes two events first and waits until the node has both."""
    recent, deliver = node.channels.history_store.recent, node.on_publications

    async def publish_and_read(
        key: str, limit: int, since: Position | None = None
    ) -> tuple[list[Publication], Position]:
        arrived = asyncio.Event()

        def count(batch: Any) -> None:
            deliver(batch)
            if any(b'"3"' in payload for payload in batch.get(key, ())):
                arrived.set()

        node.on_publications = count  # type: ignore[method-assign]
        service: Any = node.find_service("pubsub")
        for number in (2, 3):
            await service.published(channel, {"event": "e", "data": str(number)})
        async with asyncio.timeout(DEADLINE_S):
            await arrived.wait()
        return await recent(key, limit, since)

    return publish_and_read


async def test_many_clients_that_subscribe_meanwhile_hear_each_event_once_and_in_order(nodes: Nodes, url: str) -> None:
    urls, channel, is_over = [url, await nodes.start(**ENV)], "private-cache-a", asyncio.Event()
    published = 0

    async def publish_on() -> None:
        nonlocal published
        service: Any = nodes.gateways[1].node.find_service("pubsub")
        while not is_over.is_set():
            published += 1
            await service.published(channel, {"event": "e", "data": str(published)})
            await asyncio.sleep(0)

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(urls[number % 2])) for number in range(40)]
        publishing = asyncio.create_task(publish_on())
        for number, each in enumerate(clients):
            await each.ask(channel)
            if number % 4 == 3:
                await each.subscribed(channel)
                await each.event("e")
        is_over.set()
        await publishing
        for number, each in enumerate(clients):
            await _until_last(each, published)
            found = [int(found["data"]) for found in each.heard if found["event"] == "e"]
            assert found == list(range(found[0], published + 1)), f"client {number}"
            assert [found for found in each.heard if found["event"] == "pusher:cache_miss"] == [] or found[0] == 1


async def _until_last(client: PusherClient, number: int) -> None:
    """Wait for the last event; earlier events stay in `heard`."""
    async with asyncio.timeout(DEADLINE_S):
        while not any(each["event"] == "e" and each["data"] == str(number) for each in client.heard):
            await client._hear()


# -- client events ----------------------------------------------------------------------------------------------------


async def test_client_event_reaches_the_others_on_all_nodes_as_it_was_sent(nodes: Nodes, url: str) -> None:
    other_url = await nodes.start(**ENV)
    async with connected(url) as client, connected(url) as near, connected(other_url) as far:
        for each in (client, near, far):
            await each.subscribe("private-a")
        for data, text in (({"x": [1]}, '{"x":[1]}'), ("as it is", "as it is"), (None, "null"), (7, "7")):
            await client.send("client-typing", data, "private-a")
            for each in (near, far):
                assert await each.event("client-typing") == {
                    "event": "client-typing",
                    "channel": "private-a",
                    "data": text,
                }
        await far.send("client-fence", {}, "private-a")
        await client.event("client-fence")
        assert await client.fence() == [], "not to itself, and without an answer"


async def test_client_event_on_a_presence_channel_names_its_user(nodes: Nodes, url: str) -> None:
    other_url = await nodes.start(**ENV)
    async with connected(url) as client, connected(other_url) as other, connected(url) as again:
        for each, user in ((other, "bob"), (client, 42), (again, 42)):
            await each.subscribe("presence-a", member(user))
        await client.send("client-e", "x", "presence-a")
        for each in (other, again):
            assert await each.event("client-e") == {
                "event": "client-e",
                "channel": "presence-a",
                "data": "x",
                "user_id": "42",
            }


@pytest.mark.parametrize(
    "channel", ["news", "cache-a", "private-encrypted-a", "private-encrypted-cache-a", "#server-to-user-ann"]
)
async def test_client_event_is_refused_on_public_and_encrypted_channels(nodes: Nodes, url: str, channel: str) -> None:
    async with connected(url) as client, connected(url) as other:
        for each in (client, other):
            await each.signed_in({"id": "ann"})
            await each.subscribe(channel)
            await each.fence()
            each.heard.clear()
        await client.send("client-e", {}, channel)
        refusal = await client.event("pusher:error", channel)
        assert json.loads(refusal["data"])["code"] == 4301
        assert await other.fence() == [] == await client.fence()


@pytest.mark.parametrize("channel", ["private-a", "presence-a", "private-cache-a", "private-open"])
async def test_client_event_is_refused_without_a_subscription(nodes: Nodes, url: str, channel: str) -> None:
    async with connected(url) as client, connected(url) as other:
        await other.subscribe(channel, data_for(channel))
        await other.fence()
        other.heard.clear()
        await client.send("client-e", {}, channel)
        assert (await client.data("pusher:error", channel))["code"] == 4301
        await client.subscribe(channel, data_for(channel))
        await client.unsubscribe(channel)
        await nodes.until_subscribed(1)
        await client.send("client-e", {}, channel)
        assert (await client.data("pusher:error", channel))["code"] == 4301
        assert [each for each in await other.fence() if each["event"].startswith("client-")] == []


@pytest.mark.parametrize(
    "sent",
    [
        {"event": "client-e", "data": {}},
        {"event": "client-e", "data": {}, "channel": 7},
        {"event": "client-e", "data": {}, "channel": "a b"},
        {"event": f"client-{'x' * 194}", "data": {}, "channel": "private-a"},
    ],
)
async def test_client_event_that_names_no_channel_or_a_long_name_is_refused(nodes: Nodes, url: str, sent: Any) -> None:
    async with connected(url) as client, connected(url) as other:
        for each in (client, other):
            await each.subscribe("private-a")
        await client.send_text(json.dumps(sent))
        assert (await client.data("pusher:error"))["code"] is None
        assert await other.fence() == [] == await client.fence()


async def test_ten_client_events_a_second_are_sent_and_others_refused(nodes: Nodes, url: str) -> None:
    loop = asyncio.get_running_loop()
    async with connected(url) as client, connected(url) as other:
        for each in (client, other):
            await each.subscribe("private-a")
        began_s = loop.time()
        for number in range(30):
            await client.send("client-e", number, "private-a")
        await client.fence()
        at_most = 10 + int(10 * (loop.time() - began_s)) + 1
        refused = [json.loads(each["data"])["code"] for each in client.heard]
        assert set(refused) == {4301} and 30 - at_most <= len(refused) <= 20
        await eventually_sends(client, "client-later")
        await other.event("client-later")
        sent = [int(each["data"]) for each in other.heard]
        assert sent[:10] == list(range(10)) and len(sent) == 30 - len(refused)


async def eventually_sends(client: PusherClient, name: str) -> None:
    """Send a client event again until it is not refused."""

    async def is_sent() -> bool:
        client.heard.clear()
        await client.send(name, {}, "private-a")
        return not await client.fence()

    await eventually(is_sent, within_s=DEADLINE_S, what="a client event is accepted again")


async def test_client_events_are_not_kept(nodes: Nodes, url: str) -> None:
    await publish(nodes, "private-cache-a", [1])
    async with connected(url) as client, connected(url) as other:
        for channel in ("private-cache-a", "private-kept"):
            for each in (client, other):
                await each.subscribe(channel)
            await client.send("client-e", {}, channel)
            await other.event("client-e", channel)
        async with connected(url) as later:
            await later.subscribe("private-cache-a")
            assert await later.event("e") == event(1, "private-cache-a")
    store = nodes.gateways[0].node.channels.history_store
    found, position = await store.recent("pubsub:private-kept", 10)
    assert (found, position.offset) == ([], 0)


async def test_rule_of_the_operator_refuses_client_events(nodes: Nodes, url: str) -> None:
    async with connected(url) as client, connected(url) as other:
        for each in (client, other):
            await each.subscribe("private-read")
        await client.send("client-e", {}, "private-read")
        assert (await client.data("pusher:error", "private-read"))["code"] == 4301
        assert await other.fence() == []


async def test_app_without_client_events_refuses_them(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_PUBLIC__PUSHER_APPS__SHOP__CLIENT_EVENTS="false")
    async with connected(url, KEY, SECRET) as client, connected(url) as other:
        for each in (client, other):
            await each.subscribe("private-open")
        await client.send("client-e", {}, "private-open")
        assert (await client.data("pusher:error", "private-open"))["code"] == 4301
        assert await other.fence() == []


# -- relay, of Snorky's own clients -----------------------------------------------------------------------------------


async def relay(client: AnyClient, channel: str, message: Any) -> Any:
    return await client._call("relay", channel=channel, message=message)  # type: ignore[attr-defined]


async def test_relayed_message_reaches_the_others_and_is_not_kept(nodes: Nodes, url: str) -> None:
    other_url = await nodes.start(**ENV)
    async with (
        opened("json", url, NEWS) as client,
        opened("msgpack", url, NEWS) as near,
        opened("json", other_url, NEWS) as far,
        connected(other_url) as pusher,
    ):
        await pusher.subscribe(NEWS)
        assert (await relay(client, NEWS, {"event": "typing", "data": "x"}))["type"] == "response"
        for each in (near, far):
            found = await each.event()
            assert (found.value, found.place) == ({"event": "typing", "data": "x"}, None), "it has no position"
        assert await pusher.event("typing", NEWS) == {"event": "typing", "channel": NEWS, "data": "x"}
        await publish(nodes, NEWS, [1])
        assert await client.message() == {"event": "e", "data": "1"}, "not to itself"
    found_, position = await nodes.gateways[0].node.channels.history_store.recent(f"pubsub:{NEWS}", 10)
    assert (len(found_), position.offset) == (1, 1)


async def test_relay_needs_the_right_to_publish(nodes: Nodes, url: str) -> None:
    async with opened("json", url, "read") as client, opened("json", url, "read") as other:
        refusal = await relay(client, "read", "no")
        assert (refusal["type"], refusal["code"]) == ("error", "not_authorized")
        await publish(nodes, "read", [1])
        assert await other.message() == {"event": "e", "data": "1"}


async def test_subscription_that_failed_leaves_nothing_behind(nodes: Nodes, url: str) -> None:
    async with connected(url) as client, connected(url) as other:
        with pytest.raises(SubscriptionFailed):
            await client.subscribe("presence-cache-a", member("ann"), auth="wrong")
        told = await other.subscribe("presence-cache-a", member("bob"))
        assert told["presence"]["ids"] == ["bob"]
