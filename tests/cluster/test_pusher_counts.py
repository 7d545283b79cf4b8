"""`subscription_counts` of a Pusher app over several nodes: which clients are told which numbers, and webhooks."""

import asyncio
import json
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any, Final

import pytest
from redis.asyncio import Redis

import snorky.gateway.http.protocols.pusher.webhook_sender as webhook_sender
import snorky.gateway.redis.webhooks as webhooks
from snorky.client.aio import Publisher
from snorky.gateway.http.protocols.pusher.webhook_sender import Pace
from snorky.gateway.redis.webhooks import WebhookTimings
from tests.cluster.test_pusher_webhooks import Receiver, receiver  # noqa: F401 - a fixture
from tests.support.clients.any_protocol import PROTOCOLS, opened
from tests.support.clients.pusher import PusherClient, SubscriptionFailed, connected, member
from tests.support.clients.pusher_xhr import connected_xhr
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.protocol_nodes import ENV, Nodes, subscriptions_of, token_of

APP: Final = "SNORKY_PUBLIC__PUSHER_APPS__SHOP__"
ON: Final = {f"{APP}SUBSCRIPTION_COUNTS": "true"}
HOOKED: Final = {f"{APP}WEBHOOK_EVENTS": '["subscription_count"]'}
EVENT: Final = "pusher_internal:subscription_count"
OTHER_KEY, OTHER_SECRET = "other-key", "f1b7d94e63a1d8c28d2a5c1f070be376"


@pytest.fixture
def env(receiver: Receiver) -> dict[str, str]:  # noqa: F811
    """Settings of nodes that count, and send webhooks."""
    return {**receiver.env, **ON, **HOOKED}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let numbers come five times a second."""
    timings = WebhookTimings(late_s=0.3, number_every_s=0.2, many_every_s=0.5, numbers_after_s=0.5)
    monkeypatch.setattr(webhooks, "WebhookTimings", lambda: timings)
    monkeypatch.setattr(webhook_sender, "Pace", lambda: Pace(renew_s=0.1, first_pause_s=0.1, pause_max_s=0.2))


async def until_told(client: PusherClient, channel: str, number: int) -> list[int]:
    """Wait until a client is told this number of a channel; returns all numbers that it was told until then."""
    told = []
    while not told or told[-1] != number:
        event = await client.event(EVENT, channel)
        assert event.keys() == {"event", "channel", "data"}
        data = json.loads(event["data"])
        assert data.keys() == {"subscription_count"}
        told.append(data["subscription_count"])
    return told


def numbers_in(receiver: Receiver, channel: str) -> list[int]:  # noqa: F811
    """Return the numbers of a channel that the backend has received."""
    events = [each for each in receiver.received if each["channel"] == channel]
    assert all(each.keys() == {"name", "channel", "subscription_count"} for each in events)
    assert {each["name"] for each in events} <= {"subscription_count"}
    return [each["subscription_count"] for each in events]


async def until_received(receiver: Receiver, channel: str, number: int) -> list[int]:  # noqa: F811
    """Wait until the backend has received this number as the last one of a channel; returns all."""

    async def has_it() -> bool:
        return numbers_in(receiver, channel)[-1:] == [number]

    await eventually(has_it, within_s=40.0, what=f"the number {number} of {channel}")
    return numbers_in(receiver, channel)


@pytest.mark.usefixtures("soon")
async def test_all_subscribers_are_told_how_many_they_are_on_all_nodes(
    nodes: Nodes,
    receiver: Receiver,  # noqa: F811
    env: dict[str, str],
) -> None:
    urls = [await nodes.start(**env) for _ in range(3)]
    async with connected(urls[0]) as ann, connected(urls[1]) as bob, connected_xhr("xhr", urls) as (eve, _):
        clients: list[PusherClient] = []
        for client in (ann, bob, eve):
            await client.subscribe("private-a")
            clients.append(client)
            for each in clients:
                await until_told(each, "private-a", len(clients))
        await bob.unsubscribe("private-a")
        for each in (ann, eve):
            await until_told(each, "private-a", 2)
        async with connected(urls[2]) as dan:
            await dan.subscribe("private-a")
            for each in (ann, eve, dan):
                await until_told(each, "private-a", 3)
        for each in (ann, eve):
            await until_told(each, "private-a", 2)
        assert not [each for each in await bob.fence() if each["event"] == EVENT]
        for each in (ann, eve):
            await each.unsubscribe("private-a")
        numbers = await until_received(receiver, "private-a", 0)
    assert all(first != second for first, second in pairwise(numbers)), numbers
    assert {1, 2, 3} <= set(numbers)


@pytest.mark.usefixtures("soon")
async def test_page_that_reloads_is_told_the_number_and_others_hear_it_at_last(
    nodes: Nodes, env: dict[str, str]
) -> None:
    urls = [await nodes.start(**env) for _ in range(2)]
    async with connected(urls[0]) as ann:
        await ann.subscribe("news")
        for _ in range(3):
            async with connected(urls[1]) as page:
                await page.subscribe("news")
                assert (await until_told(page, "news", 2))[-1] == 2
        await until_told(ann, "news", 1)


@pytest.mark.usefixtures("soon")
async def test_presence_channels_and_channels_of_users_have_no_number(
    nodes: Nodes,
    receiver: Receiver,  # noqa: F811
    env: dict[str, str],
) -> None:
    url = await nodes.start(**env)
    async with connected(url) as ann:
        await ann.signed_in({"id": "ann"})
        uncounted = ["presence-a", "presence-cache-a", "#server-to-user-ann"]
        for channel in uncounted:
            await ann.subscribe(channel, member("ann") if "presence" in channel else None)
        counted = ["news", "cache-a", "private-a", "private-encrypted-a", "private-cache-a"]
        for channel in counted:
            await ann.subscribe(channel)
        for channel in counted:
            await until_told(ann, channel, 1)
            await until_received(receiver, channel, 1)
        assert {each["channel"] for each in receiver.received} == set(counted)
        assert not [each for each in await ann.fence() if each["event"] == EVENT and each["channel"] in uncounted]


@pytest.mark.usefixtures("soon")
async def test_only_clients_of_the_app_with_the_option_count_and_are_told(
    nodes: Nodes,
    receiver: Receiver,  # noqa: F811
    env: dict[str, str],
) -> None:
    other = {"KEY": OTHER_KEY, "SECRET": OTHER_SECRET, "SERVICE": "pubsub", "WEBHOOK_URL": receiver.backend.url}
    env |= {f"{APP}SERVICE": "pubsub", **{f"SNORKY_PUBLIC__PUSHER_APPS__OTHER__{name}": other[name] for name in other}}
    env["SNORKY_PUBLIC__PUSHER_APPS__OTHER__WEBHOOK_EVENTS"] = "[]"
    urls = [await nodes.start(**env) for _ in range(2)]
    async with AsyncExitStack() as stack:
        stranger = await stack.enter_async_context(connected(urls[0], OTHER_KEY, OTHER_SECRET))
        await stranger.subscribe("kept.news")
        others = [
            await stack.enter_async_context(opened(kind, urls[0], "kept.news", token=token_of(kind)))
            for kind in PROTOCOLS
            if kind != "pusher"
        ]
        ann, bob = [await stack.enter_async_context(connected(url)) for url in urls]
        await ann.subscribe("kept.news")
        await bob.subscribe("kept.news")
        for each in (ann, bob):
            assert set(await until_told(each, "kept.news", 2)) <= {1, 2}
        # a plain WebSocket is not told when it is subscribed
        await nodes.until_subscribed(3 + sum(subscriptions_of(kind) for kind in PROTOCOLS if kind != "pusher"))
        publisher = await stack.enter_async_context(Publisher(nodes.redis_url))
        await publisher.publish("kept.news", "fence")
        for each in others:
            assert await each.message() == "fence"
        heard = [await stranger.event("message")]
        assert heard[0]["data"] == "fence" and not await stranger.fence()
        history = nodes.gateways[0].node.channels.history_store
        publications, _ = await history.recent("pubsub:kept.news", 10)
        assert [each.payload for each in publications] == [b'"fence"']


@pytest.mark.usefixtures("soon")
async def test_subscription_that_is_refused_or_ended_by_the_server_does_not_count(
    nodes: Nodes, env: dict[str, str]
) -> None:
    url = await nodes.start(**env)
    async with connected(url) as ann, connected(url) as bob, connected(url) as eve:
        with pytest.raises(SubscriptionFailed):
            await bob.subscribe("private-a", auth="shop-key:forged")
        await ann.subscribe("private-a")
        await bob.subscribe("private-a")
        await until_told(ann, "private-a", 2)
        (second,) = [
            each
            for each in nodes.gateways[0].node.connections
            if f"{int(each.id.partition('.')[0][1:], 16)}.{each.serial}" == bob.socket_id
        ]
        await nodes.gateways[0].node.control.give(
            "unsubscribe", connection_id=second.id, channel="private-a", service="pubsub"
        )
        await bob.event("pusher:subscription_error", "private-a")
        await until_told(ann, "private-a", 1)
        await eve.subscribe("private-a")
        assert set(await until_told(ann, "private-a", 2)) <= {1, 2}


@pytest.mark.usefixtures("soon")
async def test_numbers_after_redis_has_lost_its_data_are_complete_ones(
    nodes: Nodes,
    receiver: Receiver,  # noqa: F811
    env: dict[str, str],
) -> None:
    urls = [await nodes.start(**env) for _ in range(2)]
    async with connected(urls[0]) as ann, connected(urls[1]) as bob, connected(urls[1]) as eve:
        for client in (ann, bob, eve):
            await client.subscribe("news")
        await until_told(ann, "news", 3)
        await until_told(bob, "news", 3)
        await until_received(receiver, "news", 3)
        async with Redis.from_url(nodes.redis_url) as redis:
            await redis.flushall()
        assert set(await until_told(bob, "news", 3)) == {3}
        await ann.unsubscribe("news")
        assert set(await until_told(bob, "news", 2)) <= {2, 3}
        numbers = await until_received(receiver, "news", 2)
    assert 1 not in numbers[numbers.index(3) :]


async def test_subscribers_of_a_node_that_is_killed_leave_the_number(
    tmp_path: Any,
    env: dict[str, str],
) -> None:
    async with RedisProcess.running(tmp_path) as redis, AsyncExitStack() as stack:
        quiet = {"SNORKY_PUBLIC__PING_INTERVAL_S": "300"}  # a client that waits for the others answers no pings
        env = {**ENV, **env, **quiet, "SNORKY_REDIS_URL": redis.url}
        victim, *others = [NodeProcess(env) for _ in range(3)]
        for node in (victim, *others):
            stack.push_async_callback(node.close)
        await asyncio.gather(*(node.wait_ready(60.0) for node in (victim, *others)))
        urls = [f"http://127.0.0.1:{node.public_port}" for node in (victim, *others)]
        async with connected(urls[1]) as bob, connected(urls[2]) as eve:
            for client in (bob, eve):
                await client.subscribe("news")
            async with connected(urls[0]) as ann, connected(urls[0]) as dan:
                for client in (ann, dan):
                    await client.subscribe("news")
                for client in (ann, bob, eve):
                    await until_told(client, "news", 4)
                victim.kill()
            for client in (bob, eve):
                assert set(await until_told(client, "news", 2)) <= {2, 4}


@pytest.mark.usefixtures("soon")
async def test_webhooks_come_while_only_some_nodes_have_their_url(
    nodes: Nodes,
    receiver: Receiver,  # noqa: F811
) -> None:
    urls = [await nodes.start(**ON)]  # it has none, and is the first one that Redis knows
    async with connected(urls[0]) as ann:
        await ann.subscribe("news")
        await until_told(ann, "news", 1)
        urls.append(await nodes.start(**receiver.env, **ON))
        async with connected(urls[1]) as bob:
            await bob.subscribe("news")
            await until_told(bob, "news", 2)
            await receiver.until(("channel_occupied", "news"))


async def test_apps_need_no_webhook_for_numbers(nodes: Nodes) -> None:
    url = await nodes.start(**ON)
    async with connected(url) as ann:
        await ann.subscribe("news")
        await until_told(ann, "news", 1)
        assert nodes.gateways[0].node.ownership.on_member is None, "nothing else is reported"


async def test_node_without_the_option_sends_no_numbers(nodes: Nodes, receiver: Receiver) -> None:  # noqa: F811
    url = await nodes.start(**receiver.env)
    async with connected(url) as ann:
        await ann.subscribe("news")
        await receiver.until(("channel_occupied", "news"))
        assert not await ann.fence()
        async with Redis.from_url(nodes.redis_url) as redis:
            names = {each.decode().rpartition(":")[2] for each in await redis.keys("*webhooks*")}
        assert not names & {"told", "changed", "due"}
        reports: Any = nodes.gateways[0].node.webhooks
        assert not reports._apps["shop"]._counts.has_clients("news"), "it uses no memory either"
