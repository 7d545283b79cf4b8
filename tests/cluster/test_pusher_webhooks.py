"""Webhooks of a Pusher app over several nodes: what a real HTTP server receives, and in which order."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from aiohttp import web
from redis.asyncio import Redis

import snorky.gateway.http.protocols.pusher.webhook_sender as webhook_sender
import snorky.gateway.redis.webhooks as webhooks
from snorky.gateway.http.protocols.pusher.webhook_sender import Pace
from snorky.gateway.redis.webhooks import WebhookTimings
from tests.support.clients.pusher import KEY, SECRET, PusherClient, SubscriptionFailed, connected, member
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.protocol_nodes import ENV, Nodes
from tests.support.servers.hook_backend import HookBackend

WITHIN_S: Final = 40.0  # a killed node is noticed within 18 s
ROOM: Final = "presence-room"
ALL = '["channel_occupied", "channel_vacated", "member_added", "member_removed", "client_event", "cache_miss"]'
Event = tuple[str, ...]


@dataclass
class Receiver:
    """The backend of the app. refuse: what it answers to a request that it does not accept; None = it accepts all."""

    backend: HookBackend
    refuse: Callable[[web.Request], web.Response] | None = None
    accepted: list[bytes] = field(default_factory=list)

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        if self.refuse is not None:
            return self.refuse(request)
        self.accepted.append(await request.read())
        return web.Response()

    @property
    def env(self) -> dict[str, str]:
        """Settings of nodes."""
        return {"SNORKY_PUBLIC__PUSHER_APPS__SHOP__WEBHOOK_URL": self.backend.url}

    @property
    def received(self) -> list[dict[str, Any]]:
        """The events of all accepted requests, in their order; each request has a valid signature."""
        for request, body in zip(self.backend.requests, self.backend.bodies, strict=True):
            signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
            assert request.headers["X-Pusher-Key"] == KEY
            assert request.headers["X-Pusher-Signature"] == signature
            assert request.headers["Content-Type"] == "application/json"
        return [event for body in self.accepted for event in json.loads(body)["events"]]

    @property
    def seen(self) -> list[Event]:
        """All events as tuples of name, channel and perhaps user."""
        return [
            tuple(event[each] for each in ("name", "channel", "user_id") if each in event) for event in self.received
        ]

    async def until_asked(self) -> None:
        """Wait for a request, also one that is refused."""

        async def is_asked() -> bool:
            return bool(self.backend.requests)

        await eventually(is_asked, within_s=WITHIN_S, what="a request to the webhook")

    async def until(self, *last: Event) -> list[Event]:
        """Wait until these events have come, in this order, the last of them as the last one; returns all events."""

        async def have_come() -> bool:
            return self.seen[-len(last) :] == list(last)

        try:
            await eventually(have_come, within_s=WITHIN_S, what=f"the events {last}")
        except AssertionError as error:
            raise AssertionError(f"{error}; seen: {self.seen}") from None
        return self.seen


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with HookBackend() as backend:
        receiver = Receiver(backend)
        backend.respond = receiver.respond
        yield receiver


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let facts end after 0.3 s, and requests be repeated after 0.1 s."""
    timings, pace = WebhookTimings(late_s=0.3), Pace(renew_s=0.1, first_pause_s=0.1, pause_max_s=0.2)
    monkeypatch.setattr(webhooks, "WebhookTimings", lambda: timings)
    monkeypatch.setattr(webhook_sender, "Pace", lambda: pace)


def occupied(channel: str) -> Event:
    return "channel_occupied", channel


def vacated(channel: str) -> Event:
    return "channel_vacated", channel


def added(user: str) -> Event:
    return "member_added", ROOM, user


def removed(user: str) -> Event:
    return "member_removed", ROOM, user


async def unsubscribed(client: PusherClient, channel: str) -> None:
    await client.unsubscribe(channel)
    await client.fence()


@pytest.mark.usefixtures("soon")
async def test_channel_is_occupied_by_its_first_client_and_vacated_by_its_last(
    nodes: Nodes, receiver: Receiver
) -> None:
    urls = [await nodes.start(**receiver.env) for _ in range(3)]
    async with connected(urls[0]) as ann, connected(urls[1]) as bob, connected(urls[2]) as eve:
        begun = [occupied("news")]
        for number, client in enumerate((ann, bob, eve)):
            await client.subscribe("news")
            await receiver.until(begun[-1])
            await client.subscribe(f"own-{number}")  # when this is reported, Redis knows all subscriptions to "news"
            begun.append(occupied(f"own-{number}"))
            await receiver.until(begun[-1])
        for number, client in enumerate((ann, bob)):
            await unsubscribed(client, "news")
            await client.subscribe(f"fence-{number}")
            await receiver.until(occupied(f"fence-{number}"))
            await client.unsubscribe(f"fence-{number}")
            await receiver.until(vacated(f"fence-{number}"))
        await unsubscribed(eve, "news")
        seen = await receiver.until(vacated("news"))
    fences = [event(f"fence-{number}") for number in range(2) for event in (occupied, vacated)]
    assert seen == [*begun, *fences, vacated("news")]


@pytest.mark.usefixtures("soon")
async def test_member_is_added_by_its_first_connection_and_removed_by_its_last(
    nodes: Nodes, receiver: Receiver
) -> None:
    urls = [await nodes.start(**receiver.env) for _ in range(2)]
    async with connected(urls[0]) as ann, connected(urls[1]) as bob:
        await ann.subscribe(ROOM, member("ann smith"))
        async with connected(urls[1]) as ann_again:
            await ann_again.subscribe(ROOM, member("ann smith"))
            await bob.subscribe(ROOM, member(7))
            await receiver.until(added("7"))
            await unsubscribed(ann, ROOM)
            await unsubscribed(bob, ROOM)
            await receiver.until(removed("7"))
        seen = await receiver.until(removed("ann smith"), vacated(ROOM))
    expected = [occupied(ROOM), added("ann smith"), added("7"), removed("7"), removed("ann smith"), vacated(ROOM)]
    assert seen == expected


async def test_page_that_reloads_within_three_seconds_sends_nothing(nodes: Nodes, receiver: Receiver) -> None:
    urls = [await nodes.start(**receiver.env) for _ in range(2)]
    async with connected(urls[0]) as other:
        async with connected(urls[0]) as page:
            await page.subscribe("news")
            await page.subscribe(ROOM, member("ann"))
            await other.subscribe("other")
            await receiver.until(occupied("other"))
        await nodes.until_subscribed(1)
        began_s = asyncio.get_running_loop().time()
        await other.unsubscribe("other")  # later than the page has gone
        async with connected(urls[1]) as page:
            await page.subscribe("news")
            await page.subscribe(ROOM, member("ann"))
            seen = await receiver.until(vacated("other"))
            assert 3.0 < asyncio.get_running_loop().time() - began_s + 0.1
    assert sorted(seen) == sorted([occupied("news"), occupied(ROOM), added("ann"), occupied("other"), vacated("other")])


@pytest.mark.usefixtures("soon")
async def test_client_events_and_cache_misses_are_reported(nodes: Nodes, receiver: Receiver) -> None:
    url = await nodes.start(**receiver.env, SNORKY_PUBLIC__PUSHER_APPS__SHOP__WEBHOOK_EVENTS=ALL)
    async with connected(url) as ann:
        await ann.subscribe(ROOM, member("ann"))
        await ann.subscribe("private-chat")
        await ann.send("client-typing", {"at": 1.50}, ROOM)
        await ann.send("client-typing", "now", "private-chat")
        await ann.send("client-typing", "now", "private-other")  # refused
        await ann.subscribe("private-cache-prices")
        await receiver.until(("cache_miss", "private-cache-prices"))
    events = [each for each in receiver.received if each["name"] == "client_event"]
    about = {"name": "client_event", "event": "client-typing", "socket_id": ann.socket_id}
    assert events == [
        {**about, "channel": ROOM, "data": '{"at":1.5}', "user_id": "ann"},
        {**about, "channel": "private-chat", "data": "now"},
    ]


@pytest.mark.usefixtures("soon")
async def test_client_that_may_not_read_the_history_reports_no_miss(nodes: Nodes, receiver: Receiver) -> None:
    rules = json.dumps([{"match": "private-cache-full", "allow_history": "nobody"}])
    url = await nodes.start(
        **receiver.env,
        SNORKY_PUBLIC__PUSHER_APPS__SHOP__WEBHOOK_EVENTS='["cache_miss"]',
        SNORKY_SERVICES__PUBSUB__CHANNELS=rules,
    )
    service: Any = nodes.gateways[0].node.find_service("pubsub")
    await service.published("private-cache-full", {"event": "price", "data": "7"})
    async with connected(url) as ann:
        await ann.subscribe("private-cache-full")
        await ann.event("pusher:cache_miss", "private-cache-full")
        await ann.subscribe("private-cache-empty")
        miss = ("cache_miss", "private-cache-empty")
        assert await receiver.until(miss) == [miss]


@pytest.mark.usefixtures("soon")
async def test_only_the_events_of_the_settings_are_sent(nodes: Nodes, receiver: Receiver) -> None:
    names = '["member_removed", "cache_miss"]'
    url = await nodes.start(**receiver.env, SNORKY_PUBLIC__PUSHER_APPS__SHOP__WEBHOOK_EVENTS=names)
    async with connected(url) as ann:
        await ann.subscribe(ROOM, member("ann"))
        await ann.send("client-typing", "now", ROOM)
        await ann.subscribe("private-cache-prices")
        miss = ("cache_miss", "private-cache-prices")
        await receiver.until(miss)
        await unsubscribed(ann, ROOM)
        assert await receiver.until(removed("ann")) == [miss, removed("ann")]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("fault", ["500", "redirect", "cut"])
async def test_refused_request_is_repeated_unchanged_until_it_is_accepted(
    nodes: Nodes, receiver: Receiver, fault: str
) -> None:
    def refuse(request: web.Request) -> web.Response:
        if len(receiver.backend.requests) == 3:
            receiver.refuse = None
        if fault == "redirect":
            return web.Response(status=307, headers={"Location": f"{receiver.backend.url}/elsewhere"})
        if fault == "cut":
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=500)

    receiver.refuse = refuse
    url = await nodes.start(**receiver.env)
    async with connected(url) as ann:
        for number in range(3):
            await ann.subscribe(f"c{number}")
        expected = [occupied(f"c{number}") for number in range(3)]
        assert await receiver.until(*expected) == expected
        for body in receiver.backend.bodies[:4]:
            assert json.loads(body)["events"][0] == {"name": "channel_occupied", "channel": "c0"}
        assert {each.path for each in receiver.backend.requests} == {"/hook"}
        sample = nodes.gateways[0].node.metrics.registry.get_sample_value
        assert sample("snorky_webhook_requests_total", {"outcome": "failed"}) == 3

        async def are_counted() -> bool:  # when the node has read the answer
            return sample("snorky_webhook_events_total", {"outcome": "sent"}) == 3

        await eventually(are_counted, within_s=WITHIN_S, what="the events are counted as sent")


@pytest.mark.usefixtures("soon")
async def test_another_node_continues_when_the_sender_stops(nodes: Nodes, receiver: Receiver) -> None:
    receiver.refuse = lambda _request: web.Response(status=500)
    async with AsyncExitStack() as first:
        sender = Nodes(nodes.redis_url, first)
        url = await sender.start(**receiver.env)
        async with connected(url) as ann:
            await ann.subscribe("news")
            await receiver.until_asked()  # a channel that is left before Redis knows that it is occupied is no event
            await nodes.start(**receiver.env)
    receiver.refuse = None
    await receiver.until(occupied("news"), vacated("news"))
    assert receiver.seen == [occupied("news"), vacated("news")]


@pytest.mark.usefixtures("soon")
async def test_loss_of_the_data_of_redis_is_no_event_and_what_ends_later_is(nodes: Nodes, receiver: Receiver) -> None:
    urls = [await nodes.start(**receiver.env) for _ in range(2)]
    async with connected(urls[0]) as ann, connected(urls[1]) as bob:
        for client in (ann, bob):
            await client.subscribe("news")
        await ann.subscribe(ROOM, member("ann"))
        await receiver.until(added("ann"))
        async with Redis.from_url(nodes.redis_url) as redis:
            await redis.flushall()
        await bob.subscribe("fence")
        await receiver.until(occupied("fence"))
        await unsubscribed(ann, "news")
        await unsubscribed(ann, ROOM)
        await receiver.until(removed("ann"), vacated(ROOM))
        await unsubscribed(bob, "news")
        seen = await receiver.until(vacated("news"))
    began = [occupied("news"), occupied(ROOM), added("ann"), occupied("fence")]
    assert seen == [*began, removed("ann"), vacated(ROOM), vacated("news")]


async def test_node_that_is_killed_leaves_its_channels_and_members(tmp_path: Any, receiver: Receiver) -> None:
    async with RedisProcess.running(tmp_path) as redis, AsyncExitStack() as stack:
        env = {**ENV, **receiver.env, "SNORKY_REDIS_URL": redis.url}
        victim, survivor = NodeProcess(env), NodeProcess(env)
        for node in (victim, survivor):
            stack.push_async_callback(node.close)
        await asyncio.gather(*(node.wait_ready(60.0) for node in (victim, survivor)))
        urls = [f"http://127.0.0.1:{node.public_port}" for node in (victim, survivor)]
        async with connected(urls[1]) as bob:
            async with connected(urls[0]) as ann:
                await ann.subscribe(ROOM, member("ann"))
                await ann.subscribe("news")
                await ann.subscribe("mine")
                await receiver.until(occupied("mine"))
                await bob.subscribe("news")
                victim.kill()
                await ann.ended()
            reading = asyncio.create_task(bob.ended())  # so that it answers pings
            seen = await receiver.until(removed("ann"), vacated("mine"), vacated(ROOM))
            assert not reading.done()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    assert sorted(seen) == sorted(
        [
            occupied(ROOM),
            added("ann"),
            occupied("news"),
            occupied("mine"),
            removed("ann"),
            vacated("mine"),
            vacated(ROOM),
        ]
    )


async def test_apps_without_a_webhook_leave_nothing_in_redis(nodes: Nodes) -> None:
    url = await nodes.start()
    async with connected(url) as ann:
        await ann.subscribe(ROOM, member("ann"))
        node = nodes.gateways[0].node
        assert node.webhooks is None and node.ownership.on_member is None
        async with Redis.from_url(nodes.redis_url) as redis:
            assert await redis.keys("*webhooks*") == []
            clients = await redis.client_list()
            assert clients and not [each["name"] for each in clients if each["name"].endswith(":webhooks")]


@pytest.mark.usefixtures("soon")
async def test_refused_subscription_is_no_event(nodes: Nodes, receiver: Receiver) -> None:
    url = await nodes.start(**receiver.env)
    async with connected(url) as ann:
        with pytest.raises(SubscriptionFailed):
            await ann.subscribe(ROOM, member("ann"), auth=f"{KEY}:forged")
        await ann.subscribe("news")
        assert await receiver.until(occupied("news")) == [occupied("news")]
