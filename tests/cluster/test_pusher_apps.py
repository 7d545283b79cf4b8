"""Pusher's apps: what clients of other protocols and of other apps can do on their channels; events over nodes."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from snorky.client.aio import Publisher
from tests.support.clients.any_protocol import Refused, opened
from tests.support.clients.pusher import SubscriptionFailed, connected, member, signed
from tests.support.scenarios.protocol_nodes import Nodes, token_of

OTHER_KEY, OTHER_SECRET = "other-key", "f1b7d94e63a1d8c28d2a5c1f070be376"
OTHER_APP = {
    "SNORKY_PUBLIC__PUSHER_APPS__SHOP__SERVICE": "pubsub",
    "SNORKY_PUBLIC__PUSHER_APPS__OTHER__KEY": OTHER_KEY,
    "SNORKY_PUBLIC__PUSHER_APPS__OTHER__SECRET": OTHER_SECRET,
    "SNORKY_PUBLIC__PUSHER_APPS__OTHER__SERVICE": "other",
    "SNORKY_SERVICES__OTHER__CLASS": "snorky.services.pubsub:PubSubService",
    "SNORKY_SERVICES__OTHER__UNMATCHED": "open",
}
_SIGNED = ("private-a", "private-cache-a", "presence-a", "presence-cache-a", "private-encrypted-a")


@pytest.mark.parametrize("kind", ["json", "msgpack", "sockjs", "raw", "sse", "centrifuge"])
@pytest.mark.parametrize("channel", [*_SIGNED, "#server-to-user-ann"])
async def test_clients_of_other_protocols_cannot_subscribe_to_what_needs_a_signature(
    nodes: Nodes, kind: str, channel: str
) -> None:
    url = await nodes.start(SNORKY_SERVICES__PUBSUB__CHANNELS="[]", SNORKY_SERVICES__PUBSUB__UNMATCHED="open")
    if kind == "raw":
        async with opened(kind, url, channel, token=token_of("ann")) as client:
            assert (await client.ended()).startswith("1008 not_authorized")
    else:
        with pytest.raises(Refused, match="not_authorized"):
            async with opened(kind, url, channel, token=token_of("ann")):
                pass
    async with opened("json", url, "unmatched", token=token_of("ann")):
        await nodes.until_subscribed(1)


async def test_clients_of_other_protocols_can_neither_publish_there_nor_read(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_SERVICES__PUBSUB__CHANNELS="[]", SNORKY_SERVICES__PUBSUB__UNMATCHED="open")
    headers = {"Authorization": f"Bearer {token_of('bob')}"}
    async with (
        opened("json", url, "unmatched", token=token_of("ann")) as client,
        connected(url, **headers) as subscriber,
    ):
        for channel in (*_SIGNED, "cache-a"):
            await subscriber.subscribe(channel, member("bob") if "presence" in channel else None)
            client.channel = channel
            assert await client.publish({"event": "e", "data": ""}) == "not_authorized", channel
            for command in ("history", "presence", "presenceStats", "relay"):
                if channel != "cache-a" or command == "relay":
                    params = {"message": 1} if command == "relay" else {}
                    reply = await client._call(command, channel=channel, **params)  # type: ignore[attr-defined]
                    assert (reply["type"], reply["code"]) == ("error", "not_authorized"), (command, channel)
        assert {each["event"] for each in await subscriber.fence()} == {"pusher:cache_miss"}


async def test_apps_with_services_of_their_own_do_not_hear_each_other(nodes: Nodes) -> None:
    url = await nodes.start(**OTHER_APP)
    other_url = await nodes.start(**OTHER_APP)
    async with AsyncExitStack() as stack:
        shop, friend = [await stack.enter_async_context(connected(each)) for each in (url, other_url)]
        other = await stack.enter_async_context(connected(other_url, OTHER_KEY, OTHER_SECRET))
        publisher = await stack.enter_async_context(Publisher(nodes.redis_url))
        for channel in ("news", "private-a", "presence-a"):
            data = member("ann") if channel == "presence-a" else None
            for each in (shop, friend, other):
                await each.subscribe(channel, data)
        await publisher.publish("news", {"event": "e", "data": "of the shop"})
        await shop.send("client-e", "of the shop", "private-a")
        await friend.event("e")
        await friend.event("client-e")
        await other.send("client-e", "of the other app", "presence-a")
        await publisher.publish("news", {"event": "e", "data": "of the other app"}, service="other")
        assert (await other.event("e"))["data"] == "of the other app"
        for each in (shop, friend, other):
            rest = await each.fence()
            assert [event for event in rest if "other" in event["data"]] == [], rest
        with pytest.raises(SubscriptionFailed) as failed:
            await other.subscribe("private-b", auth=signed(f"{other.socket_id}:private-b"))
        assert failed.value.status == 401


async def test_events_reach_all_nodes_as_they_were_published(nodes: Nodes) -> None:
    url, other_url = await nodes.start(), await nodes.start()
    text = json.dumps({"id": 7, "text": "line\nbreak € 😀"})
    async with connected(url) as client, connected(other_url) as other, Publisher(nodes.redis_url) as publisher:
        for each in (client, other):
            await each.subscribe("private-orders.7")
        await publisher.publish("private-orders.7", {"event": "App\\Events\\Shipped", "data": text})
        await publisher.publish("private-orders.7", {"event": "pusher_internal:member_added", "data": "{}"})
        for each in (client, other):
            event = await each.event("App\\Events\\Shipped")
            assert event == {"event": "App\\Events\\Shipped", "channel": "private-orders.7", "data": text}
            assert json.loads((await each.event("message"))["data"])["event"] == "pusher_internal:member_added"
        await asyncio.gather(client.fence(), other.fence())
        assert client.heard == other.heard == []
