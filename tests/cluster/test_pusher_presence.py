"""Pusher's presence channels over two nodes: their members, and the events about users who come and go."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest

from snorky.client.tokens import Signer
from tests.support.clients.any_protocol import DEADLINE_S, opened
from tests.support.clients.pusher import PusherClient, SubscriptionFailed, connected, member
from tests.support.processes.nodes import NodeProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.losses import losing
from tests.support.scenarios.protocol_nodes import ENV, Nodes
from tests.support.scenarios.tokens import SECRET

ROOM: Final = "presence-room"
ADDED, REMOVED = "pusher_internal:member_added", "pusher_internal:member_removed"
USERS: Final = 16  # of the race


@pytest.fixture
async def urls(nodes: Nodes) -> tuple[str, str]:
    return await nodes.start(), await nodes.start()


async def joined(stack: AsyncExitStack, url: str, user: Any, **info: Any) -> PusherClient:
    """Connect a client and subscribe it as a user."""
    client = await stack.enter_async_context(connected(url))
    await client.subscribe(ROOM, member(user, **info))
    return client


def presence(**members: Any) -> dict[str, Any]:
    """Make the data of a success. members: `user_info` by the users' ids."""
    return {"presence": {"count": len(members), "ids": sorted(members), "hash": members}}


# -- who is there -----------------------------------------------------------------------------------------------------


async def test_members_are_users_with_their_info_on_all_nodes(urls: tuple[str, str]) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(url)) for url in (*urls, urls[1])]
        ann, bob, again = clients
        told = await ann.subscribe(ROOM, member("ann", name="Ann"))
        assert told == presence(ann={"name": "Ann"})
        assert await bob.subscribe(ROOM, member("bob")) == presence(ann={"name": "Ann"}, bob=None)
        assert await again.subscribe(ROOM, member("ann", name="Ann")) == presence(ann={"name": "Ann"}, bob=None)


async def test_users_are_added_with_their_first_connection_and_removed_with_their_last(urls: tuple[str, str]) -> None:
    async with AsyncExitStack() as stack:
        bob = await joined(stack, urls[0], "bob")
        async with connected(urls[0]) as first, connected(urls[1]) as second:
            await first.subscribe(ROOM, member("ann", name="Ann"))
            assert await bob.data(ADDED, ROOM) == {"user_id": "ann", "user_info": {"name": "Ann"}}
            await second.subscribe(ROOM, member("ann", name="Ann"))
            eve = await joined(stack, urls[1], "eve")
            for each in (bob, first, second):
                assert await each.data(ADDED, ROOM) == {"user_id": "eve", "user_info": None}
                assert each.heard == [], "no event reports ann's second connection or the client's own"
            await first.unsubscribe(ROOM)
            await first.fence()
            await joined(stack, urls[0], "fence")
            for each in (bob, second, eve):
                assert (await each.data(ADDED, ROOM))["user_id"] == "fence"
                assert each.heard == []
        for each in (bob, eve):
            assert await each.event(REMOVED) == {"event": REMOVED, "channel": ROOM, "data": '{"user_id":"ann"}'}
        await joined(stack, urls[1], "another fence")
        for each in (bob, eve):
            assert (await each.data(ADDED, ROOM))["user_id"] == "another fence"
            assert each.heard == []


async def test_number_as_a_user_id_is_its_text(urls: tuple[str, str]) -> None:
    async with AsyncExitStack() as stack:
        ann = await joined(stack, urls[0], "ann")
        number = await stack.enter_async_context(connected(urls[1]))
        assert await number.subscribe(ROOM, member(42)) == presence(**{"42": None, "ann": None})
        assert await ann.data(ADDED, ROOM) == {"user_id": "42", "user_info": None}
        await joined(stack, urls[0], "42")
        await joined(stack, urls[0], -7)
        assert await ann.data(ADDED, ROOM) == {"user_id": "-7", "user_info": None}, "42 was there"


@pytest.mark.parametrize(
    "data",
    [
        None,
        "",
        "no json",
        "[]",
        "{}",
        '{"user_id":null}',
        '{"user_id":""}',
        '{"user_id":true}',
        '{"user_id":1.5}',
        '{"user_id":["ann"]}',
        '{"user_id":"~7"}',
        '{"user_id":"a\\u0000b"}',
        json.dumps({"user_id": "x" * 256}),
    ],
)
async def test_member_without_a_user_id_is_refused_also_if_it_is_signed(
    nodes: Nodes, urls: tuple[str, str], data: str | None
) -> None:
    async with connected(urls[0]) as client:
        with pytest.raises(SubscriptionFailed) as failed:
            await client.subscribe(ROOM, data)
        assert failed.value.status == 400
        assert await client.fence() == []
    await nodes.until_subscribed(0)


async def test_channel_data_that_is_no_text_is_refused(urls: tuple[str, str]) -> None:
    async with connected(urls[0]) as client:
        auth = client.auth(ROOM, "{'user_id': 'ann'}")
        await client.send("pusher:subscribe", {"channel": ROOM, "auth": auth, "channel_data": {"user_id": "ann"}})
        with pytest.raises(SubscriptionFailed) as failed:
            await client.subscribed(ROOM)
        assert failed.value.status == 400


async def test_user_who_has_signed_in_needs_no_channel_data(urls: tuple[str, str]) -> None:
    async with AsyncExitStack() as stack:
        bob = await joined(stack, urls[0], "bob")
        ann = await stack.enter_async_context(connected(urls[1]))
        await ann.signed_in({"id": "ann", "user_info": {"name": "Ann"}})
        assert await ann.subscribe(ROOM) == presence(ann={"name": "Ann"}, bob=None)
        assert await bob.data(ADDED, ROOM) == {"user_id": "ann", "user_info": {"name": "Ann"}}
        with pytest.raises(SubscriptionFailed) as failed:
            await ann.subscribe("presence-other", auth=bob.auth("presence-other"))
        assert failed.value.status == 401, "the channel must still be signed"
        told = await ann.subscribe("presence-other", member("alias"))
        assert told == presence(alias=None), "channel_data decides, if there is any"


async def test_second_subscription_does_not_change_who_a_client_is(urls: tuple[str, str]) -> None:
    async with AsyncExitStack() as stack:
        bob = await joined(stack, urls[1], "bob")
        ann = await stack.enter_async_context(connected(urls[0]))
        await ann.ask(ROOM, member("ann"))
        await ann.ask(ROOM, member("eve"))
        await ann.event("pusher:error")
        await ann.subscribed(ROOM)
        await ann.ask(ROOM, member("eve"))
        await ann.event("pusher:error")
        await ann.send("client-e", {}, ROOM)
        assert (await bob.event("client-e"))["user_id"] == "ann"
        assert await bob.data(ADDED, ROOM) == {"user_id": "ann", "user_info": None}
        assert bob.heard == []


async def test_client_may_come_back_as_another_user(urls: tuple[str, str]) -> None:
    async with AsyncExitStack() as stack:
        bob, ann = await joined(stack, urls[1], "bob"), await joined(stack, urls[0], "ann")
        await ann.unsubscribe(ROOM)
        assert await ann.subscribe(ROOM, member("eve")) == presence(bob=None, eve=None)
        await ann.send("client-e", {}, ROOM)
        assert (await bob.event("client-e"))["user_id"] == "eve"
        told = [json.loads(each["data"])["user_id"] for each in bob.heard]
        assert told == ["ann", "ann", "eve"]


async def test_clients_of_snorkys_protocol_and_of_pushers_see_each_other(nodes: Nodes, urls: tuple[str, str]) -> None:
    token = Signer(hmac_secret=SECRET).subscription_token("ann", ROOM)
    own = Signer(hmac_secret=SECRET).connection_token("ann")
    async with connected(urls[0]) as bob, opened("json", urls[1], "plain", token=own) as client:
        await bob.subscribe(ROOM, member("bob", name="Bob"))
        reply = await client._call("subscribe", channel=ROOM, token=token)  # type: ignore[attr-defined]
        assert reply["type"] == "response", reply
        assert await bob.data(ADDED, ROOM) == {"user_id": "ann", "user_info": None}
        reply = await client._call("presence", channel=ROOM)  # type: ignore[attr-defined]
        assert reply["data"]["members"] == ["ann", "bob"]
        async with connected(urls[0]) as eve:
            await eve.subscribe(ROOM, member("eve"))
            message = (await client._envelope())["message"]  # type: ignore[attr-defined]
            assert (message["type"], message["identity"]) == ("joined", "eve")
        message = (await client._envelope())["message"]  # type: ignore[attr-defined]
        assert (message["type"], message["identity"]) == ("left", "eve")
    await nodes.until_subscribed(0)


# -- order, races, losses ---------------------------------------------------------------------------------------------


def view_of(heard: list[dict[str, Any]]) -> set[str]:
    """Return who a client believes to be there. Raises AssertionError: an event contradicts the ones before it."""
    known: set[str] | None = None
    for each in heard:
        if each.get("channel") != ROOM:
            continue
        data = json.loads(each["data"])
        if each["event"] == "pusher_internal:subscription_succeeded":
            assert known is None, "one success"
            known = set(data["presence"]["ids"])
            assert data["presence"]["count"] == len(known)
            continue
        assert known is not None, f"{each} before the success"
        user = data["user_id"]
        if each["event"] == ADDED:
            assert user not in known, f"{user} was there"
            known.add(user)
        else:
            assert each["event"] == REMOVED and user in known, each
            known.remove(user)
    return known or set()


async def test_success_comes_first_and_each_change_once_while_many_join_and_leave(
    nodes: Nodes, urls: tuple[str, str]
) -> None:
    async with AsyncExitStack() as stack:

        async def come(number: int) -> PusherClient:
            client = await stack.enter_async_context(connected(urls[number % 2]))
            await client.ask(ROOM, member(f"user-{number}" if number < USERS else f"guest-{number % 5}"))
            if number >= USERS:
                await client.unsubscribe(ROOM)
                await client.subscribed(ROOM)
            return client

        clients = await asyncio.gather(*map(come, range(3 * USERS)))
        staying = clients[:USERS]
        await nodes.until_subscribed(USERS)
        expected = {f"user-{number}" for number in range(USERS)}

        async def is_told() -> bool:
            for each in staying:
                await each.fence()
            return all(view_of(each.heard) == expected for each in staying)

        await eventually(is_told, within_s=DEADLINE_S, what="all know who is there")
        for number, each in enumerate(staying):
            events = [event for event in each.heard if event["event"] == ADDED]
            assert f"user-{number}" not in [json.loads(event["data"])["user_id"] for event in events]


@pytest.mark.parametrize("channel", [ROOM, "presence-cache-room"])
async def test_user_who_joins_while_a_client_subscribes_is_listed_or_added(
    nodes: Nodes, urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    """Before the list is read, and after it; the node has both notices before the client has its success."""
    node = nodes.gateways[0].node
    directory, deliver = node.ownership.directory, node.on_publications
    listed, told = directory.listed, asyncio.Queue[str]()

    def tell(batch: Mapping[str, Any]) -> None:
        deliver(batch)
        for payload in batch.get(f"pubsub:{channel}", ()):
            told.put_nowait(payload.decode("latin-1"))

    async with AsyncExitStack() as stack:

        async def join(user: str) -> None:
            client = await stack.enter_async_context(connected(urls[1]))
            await client.subscribe(channel, member(user))
            async with asyncio.timeout(DEADLINE_S):
                while user not in await told.get():
                    pass

        async def list_between(roster: str) -> Any:
            await join("before")
            found = await listed(roster)
            await join("after")
            return found

        monkeypatch.setattr(node, "on_publications", tell)
        monkeypatch.setattr(directory, "listed", list_between)
        ann = await stack.enter_async_context(connected(urls[0]))
        assert await ann.subscribe(channel, member("ann")) == presence(ann=None, before=None)
        assert await ann.data(ADDED, channel) == {"user_id": "after", "user_info": None}
        assert [each["event"] for each in await ann.fence() if each["event"] != "pusher:cache_miss"] == []


async def test_join_that_a_node_missed_is_told_with_its_info(nodes: Nodes, urls: tuple[str, str]) -> None:
    async with AsyncExitStack() as stack:
        bob = await joined(stack, urls[0], "bob")
        node = nodes.gateways[0].node

        async def is_counted() -> bool:
            assert node._roster_sync is not None
            return node._roster_sync._followed[f"pubsub:{ROOM}"].version is not None

        await eventually(is_counted, within_s=DEADLINE_S, what="the node knows the members")
        async with losing(node, ROOM):
            await joined(stack, urls[1], "ann", name="Ann")
        node.on_interrupted()
        assert await bob.data(ADDED, ROOM) == {"user_id": "ann", "user_info": {"name": "Ann"}}


async def test_user_of_a_node_that_died_is_removed(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_PUBLIC__PING_INTERVAL_S="300")  # clients that wait for the others answer no pings
    async with AsyncExitStack() as stack:
        bob = await joined(stack, url, "bob")
        async with NodeProcess.running({**ENV, "SNORKY_REDIS_URL": nodes.redis_url}) as process:
            process_url = f"http://127.0.0.1:{process.public_port}"
            for user in ("ann", "eve"):
                await joined(stack, process_url, user)
                assert (await bob.data(ADDED, ROOM))["user_id"] == user
            await joined(stack, url, "eve")
            process.kill()
            assert await bob.data(REMOVED, ROOM) == {"user_id": "ann"}
            assert await bob.fence() == [], "eve is still on this node"
        async with connected(url) as later:
            assert await later.subscribe(ROOM, member("later")) == presence(bob=None, eve=None, later=None)
