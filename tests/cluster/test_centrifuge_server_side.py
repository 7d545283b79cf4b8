"""Centrifuge clients: subscriptions that the server makes, by tokens, personal channels, and orders of the backend."""

import asyncio
from typing import Any

import pytest

from snorky.client import AsyncSnorkyBackend, SnorkyHTTPTransport
from snorky.client.aio import Publisher
from snorky.client.control import AsyncControl
from tests.support.clients.centrifuge import CommandFailed, connected, dialled
from tests.support.scenarios.centrifuge_nodes import ENV, token
from tests.support.scenarios.protocol_nodes import Nodes, token_of


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start(**ENV)


@pytest.mark.parametrize(
    "claims",
    [
        {"channels": ["by-token:a", 7, ""]},
        {"subs": {"by-token:a": {"info": {}}}, "channels": {"by-token:b": ["publish"]}},
    ],
)
async def test_token_names_channels_that_the_server_subscribes_to(nodes: Nodes, url: str, claims: Any) -> None:
    async with dialled(url) as client, Publisher(nodes.redis_url) as publisher:
        told = await client.call("connect", token=token("ann", **claims))
        (begun,) = told["subs"].values()
        assert told["subs"].keys() == {"by-token:a"} and (begun["recoverable"], begun["offset"]) == (True, 0)
        await publisher.publish("by-token:a", "first")
        assert await client.push("by-token:a", "pub") == {"data": "first", "offset": 1}
        await nodes.until_subscribed(1)
        for _ in range(2):
            await publisher.publish("by-token:a", "missed")
    place = {"epoch": begun["epoch"], "recover": True}
    async with dialled(url) as again:
        told = await again.call("connect", token=token("ann", **claims), subs={"by-token:a": place | {"offset": 1}})
        found = told["subs"]["by-token:a"]
        assert (found["recovered"], [each["offset"] for each in found["publications"]]) == (True, [2, 3])
    async with dialled(url) as lost:
        place["epoch"] = "another"
        told = await lost.call("connect", token=token("ann", **claims), subs={"by-token:a": place | {"offset": 1}})
        assert told["subs"]["by-token:a"]["recovered"] is False


async def test_recovered_messages_of_all_subscriptions_fit_the_queue(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_LIMITS__OUTBOX_MAX_BYTES="60000", SNORKY_LIMITS__MESSAGE_MAX_BYTES="20000")
    channels = [f"by-token:{number}" for number in range(4)]
    async with dialled(url) as client, Publisher(nodes.redis_url) as publisher:
        told = await client.call("connect", token=token("ann", channels=channels))
        places = {name: {"recover": True, "offset": 0, "epoch": each["epoch"]} for name, each in told["subs"].items()}
        for channel in channels:
            for _ in range(6):
                await publisher.publish(channel, "x" * 2_000)
    async with dialled(url) as again:
        told = await again.call("connect", token=token("ann", channels=channels), subs=places)
        recovered = [each["recovered"] for each in told["subs"].values()]
        assert sorted(recovered) == [False, False, True, True], "and the connection stays"
        await again.call("ping")


async def test_identity_that_is_too_long_for_a_personal_channel_has_none(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_PUBLIC__CENTRIFUGE_PERSONAL_CHANNELS="true")
    async with connected(url, token("x" * 255)) as client:
        await client.call("ping")
        await nodes.until_subscribed(0)


async def test_stored_subscriptions_recover_from_where_the_client_was(nodes: Nodes, url: str) -> None:
    private_url = nodes.gateways[0].private_urls[0]
    async with AsyncSnorkyBackend(SnorkyHTTPTransport(f"{private_url}/backend")) as backend:
        await AsyncControl(backend).subscribe("by-token:z", identity="ann")
    async with connected(url, token("ann")) as client, Publisher(nodes.redis_url) as publisher:
        begun = await client.push("by-token:z", "subscribe")
        await publisher.publish("by-token:z", 1)
        await client.push("by-token:z", "pub")
        place = {"recover": True, "epoch": begun["epoch"], "offset": 1}
    async with Publisher(nodes.redis_url) as publisher:
        await publisher.publish("by-token:z", 2)
    async with dialled(url) as again:
        await again.call("connect", token=token("ann"), subs={"by-token:z": place})
        assert await again.push("by-token:z", "pub") == {"data": 2, "offset": 2}


async def test_nothing_comes_before_the_reply_to_connect(nodes: Nodes, url: str) -> None:
    private_url = nodes.gateways[0].private_urls[0]
    headers = {"Authorization": f"Bearer {token('ann')}"}
    async with dialled(url, **headers) as client, Publisher(nodes.redis_url) as publisher:
        async with AsyncSnorkyBackend(SnorkyHTTPTransport(f"{private_url}/backend")) as backend:
            await AsyncControl(backend).subscribe("by-token:z", identity="ann")
        await publisher.publish("by-token:z", "early")
        await asyncio.sleep(0.3)
        await client.send({"id": 1, "connect": {}})
        await client._hear()
        assert client.news[0].get("id") == 1, client.heard
        assert (await client.push("by-token:z", "subscribe"))["recoverable"] is True


async def test_client_without_a_token_is_refused_where_one_is_required(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_AUTH__REQUIRED="true")
    async with dialled(url) as client:
        await client.send({"id": 1, "connect": {}})
        assert (await client.ended())[0] == 3500


async def test_orders_for_channels_whose_names_are_no_texts_do_not_reach_such_clients(nodes: Nodes, url: str) -> None:
    private_url = nodes.gateways[0].private_urls[0]
    async with connected(url, token("ann")) as client:
        async with AsyncSnorkyBackend(SnorkyHTTPTransport(f"{private_url}/backend")) as backend:
            await AsyncControl(backend).subscribe(["no", "text"], identity="ann")
        await client.call("ping")
        assert client.news == []
        await nodes.until_subscribed(0)


async def test_personal_channel(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_PUBLIC__CENTRIFUGE_PERSONAL_CHANNELS="true")
    async with connected(url, token_of("42")) as client, connected(url) as anonymous:
        await client.call("publish", channel="#42", data=1)
        assert (await client.push("#42", "pub"))["data"] == 1
        with pytest.raises(CommandFailed) as failed:
            await anonymous.call("subscribe", channel="#42")
        assert failed.value.code == 101 or failed.value.code == 103


async def test_orders_of_the_backend_are_pushes(nodes: Nodes, url: str) -> None:
    private_url = nodes.gateways[0].private_urls[0]
    async with (
        connected(url, token_of("ann")) as client,
        AsyncSnorkyBackend(SnorkyHTTPTransport(f"{private_url}/backend")) as backend,
    ):
        control = AsyncControl(backend)
        await control.subscribe("by-token:z", identity="ann")
        assert (await client.push("by-token:z", "subscribe"))["offset"] == 0
        await control.unsubscribe(identity="ann", channel="by-token:z")
        assert (await client.push("by-token:z", "unsubscribe"))["code"] == 2000
        await control.disconnect(identity="ann")
        assert (await client.ended())[0] == 3503
