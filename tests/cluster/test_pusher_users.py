"""Pusher's users: sign-in, channels of users, required identities; what the backend does to connections."""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import pytest

from snorky.client import AsyncSnorkyBackend, SnorkyHTTPTransport
from snorky.client.aio import Publisher
from snorky.client.control import AsyncControl
from tests.support.clients.any_protocol import opened
from tests.support.clients.pusher import PusherClient, SubscriptionFailed, connected, member, signed
from tests.support.scenarios.protocol_nodes import Nodes, token_of

OF_ANN: Final = "#server-to-user-ann"


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start(SNORKY_BACKEND__CONTROL__CLASS="snorky.services.control:ControlBackend")


@pytest.fixture
async def control(nodes: Nodes, url: str) -> AsyncIterator[AsyncControl]:
    transport = SnorkyHTTPTransport(f"{nodes.gateways[0].private_urls[0]}/backend")
    async with AsyncSnorkyBackend(transport) as backend:
        yield AsyncControl(backend)


def bearer(identity: str) -> dict[str, str]:
    """Make the headers of a client that has an identity before it signs in."""
    return {"Authorization": f"Bearer {token_of(identity)}"}


async def refused(client: PusherClient, channel: str) -> int:
    """Subscribe a client to a channel that is not for it; returns the status."""
    with pytest.raises(SubscriptionFailed) as failed:
        await client.subscribe(channel, auth=client.auth(channel))
    return int(failed.value.status)


# -- signing in -------------------------------------------------------------------------------------------------------


async def test_user_who_signed_in_receives_what_is_sent_to_it_on_any_node(nodes: Nodes, url: str) -> None:
    other_url = await nodes.start()
    user = json.dumps({"id": "ann", "user_info": {"name": "Ann"}})
    async with connected(url) as ann, connected(other_url) as again, Publisher(nodes.redis_url) as publisher:
        for each in (ann, again):
            await each.sign_in(user)
            assert await each.data("pusher:signin_success") == {"user_data": user}, "the very text"
            await each.subscribe(OF_ANN)
        await publisher.publish(OF_ANN, {"event": "news", "data": "for ann"})
        for each in (ann, again):
            assert await each.event("news") == {"event": "news", "channel": OF_ANN, "data": "for ann"}


async def test_channel_of_a_user_is_open_to_that_user_alone(nodes: Nodes, url: str) -> None:
    async with connected(url) as client, connected(url, **bearer("ann")) as other:
        assert await refused(client, OF_ANN) == 401
        await client.signed_in({"id": "bob"})
        assert await refused(client, OF_ANN) == 401
        assert await refused(client, "#server-to-user-bo") == 401
        assert await refused(other, OF_ANN) == 401, "its identity is not of the app's backend"
        await nodes.until_subscribed(0)
        await client.subscribe("#server-to-user-bob")


async def test_number_as_an_id_is_its_text(url: str) -> None:
    async with connected(url) as client:
        await client.signed_in({"id": 42})
        await client.subscribe("#server-to-user-42")
        assert (await client.subscribe("presence-a"))["presence"]["ids"] == ["42"]


async def test_signature_of_another_text_or_connection_ends_the_connection(url: str) -> None:
    user = json.dumps({"id": "ann"})
    async with connected(url) as other:
        for make in (
            lambda client: "",
            lambda client: client.auth(f":user::{user}")[:-1],
            lambda client: client.auth(f":user::{user} "),
            lambda client: client.auth(user),
            lambda client: client.auth("private-a", user),
            lambda client: other.auth(f":user::{user}"),
            lambda client: signed(f"{client.socket_id}::user::{user}", secret="another"),
        ):
            async with connected(url) as client:
                await client.sign_in(user, auth=make(client))
                assert await client.ended() == (4009, "Invalid signature")
                assert client.heard == []
        assert await other.fence() == []


@pytest.mark.parametrize("data", [None, {}, {"user_data": {"id": "ann"}}, {"user_data": '{"id":"ann"}'}, "text"])
async def test_sign_in_without_a_signature_ends_the_connection(url: str, data: Any) -> None:
    async with connected(url) as client:
        await client.send("pusher:signin", data)
        assert (await client.ended())[0] == 4009


@pytest.mark.parametrize("user", ["", "no json", "[]", "{}", '{"id":null}', '{"id":""}', '{"id":true}', '{"id":"~7"}'])
async def test_user_without_an_id_is_refused_also_if_it_is_signed(url: str, user: str) -> None:
    async with connected(url) as client:
        await client.sign_in(user)
        assert (await client.data("pusher:error"))["code"] is None
        assert await client.fence() == []
        assert await refused(client, OF_ANN) == 401


async def test_second_sign_in_does_not_change_who_a_client_is(url: str) -> None:
    async with connected(url) as client:
        await client.sign_in({"id": "ann"})
        await client.sign_in({"id": "bob"})
        assert json.loads((await client.data("pusher:signin_success"))["user_data"]) == {"id": "ann"}
        await client.event("pusher:error")
        await client.subscribe(OF_ANN)
        assert await refused(client, "#server-to-user-bob") == 401
        await client.sign_in({"id": "bob"})
        assert (await client.ended())[0] == 4009


# -- `[auth] required` ------------------------------------------------------------------------------------------------


async def test_required_identity_is_that_of_a_signature_or_a_user(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_AUTH__REQUIRED="true")
    async with connected(url) as client, connected(url, **bearer("bob")) as known:
        for channel in ("news", "kept.news", "cache-a"):
            with pytest.raises(SubscriptionFailed) as failed:
                await client.subscribe(channel)
            assert (failed.value.status, failed.value.data["type"]) == (401, "AuthError")
        await client.subscribe("private-a")
        await client.subscribe("presence-a", member("ann"))
        await known.subscribe("news")
        await client.signed_in({"id": "ann"})
        await client.subscribe("news")
        await client.subscribe(OF_ANN)


async def test_connection_without_an_identity_is_not_ended_although_others_are(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_AUTH__REQUIRED="true", SNORKY_AUTH__TIMEOUT_S="0.2")
    async with connected(url) as client, aiohttp.ClientSession() as http:
        await client.subscribe("private-a")
        async with http.ws_connect(f"{url}/ws") as socket:  # it connected later, so its time ends later
            await socket.receive(timeout=30)
            assert socket.close_code == 4502
        assert await client.fence() == []


# -- the backend ------------------------------------------------------------------------------------------------------


async def test_user_whose_identity_is_revoked_is_ended(nodes: Nodes, url: str) -> None:
    async with connected(url) as ann, connected(url) as bob, connected(url, **bearer("ann")) as by_token:
        for each, user in ((ann, "ann"), (bob, "bob")):
            await each.signed_in({"id": user})
        await nodes.gateways[0].node.auth.revoke("ann")
        for each in (ann, by_token):
            assert (await each.ended())[0] == 4009
        assert await bob.fence() == []


async def test_backend_disconnects_a_user(url: str, control: AsyncControl) -> None:
    async with connected(url) as ann, connected(url) as bob:
        for each, user in ((ann, "ann"), (bob, "bob")):
            await each.signed_in({"id": user})
        await control.disconnect(identity="ann")
        assert (await ann.ended())[0] == 4009
        assert await bob.fence() == []


async def test_backend_ends_a_subscription(nodes: Nodes, url: str, control: AsyncControl) -> None:
    async with connected(url) as ann, connected(url) as bob:
        for each, user in ((ann, "ann"), (bob, "bob")):
            await each.signed_in({"id": user})
            await each.subscribe("presence-a")
        await control.unsubscribe(identity="ann", channel="presence-a")
        told = await ann.event("pusher:subscription_error", "presence-a")
        assert json.loads(told["data"])["status"] == 400
        await bob.event("pusher_internal:member_removed", "presence-a")
        await ann.send("client-e", {}, "presence-a")
        assert (await ann.data("pusher:error", "presence-a"))["code"] == 4301
        await nodes.until_subscribed(1)


async def test_orders_to_subscribe_do_nothing_to_these_clients(nodes: Nodes, url: str, control: AsyncControl) -> None:
    async with connected(url) as ann, opened("json", url, "plain", token=token_of("ann")) as other:
        await ann.signed_in({"id": "ann"})
        await ann.subscribe("plain")
        for channel in ("news", "private-a", "presence-a", ["no", "text"]):
            await control.subscribe(channel, identity="ann")
        for _ in range(4):
            assert (await other.event()).kind == "subscribed", "clients of Snorky's protocol are"
        assert await ann.fence() == []
        await nodes.until_subscribed(6)
