"""Pusher's clients: events at the same time, and the limits of a client that has only the public key."""

import json
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from snorky.client.aio import Publisher
from snorky.gateway import ConfigurationError, Gateway, Public, Rosters, RosterSnapshot, ServiceRegistry, Settings
from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.config.settings import load
from snorky.gateway.runtime.reload import Reloader
from snorky.services.pubsub import PubSubService
from tests.support.clients.any_protocol import DEADLINE_S, Refused, opened
from tests.support.clients.pusher import KEY, SECRET, PusherClient, SubscriptionFailed, connected, member
from tests.support.processes.tools import eventually
from tests.support.scenarios.protocol_nodes import ENV, Nodes

ROUNDS: Final = 10
SMALL_OUTBOX: Final = {"SNORKY_LIMITS__OUTBOX_MAX_BYTES": "65536"}


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start()


async def refusal(client: PusherClient, channel: str, channel_data: str | None = None) -> dict[str, Any]:
    with pytest.raises(SubscriptionFailed) as caught:
        await client.subscribe(channel, channel_data)
    return caught.value.data


async def test_signing_in_ends_no_subscription_that_is_in_progress(url: str) -> None:
    for number in range(ROUNDS):
        user = f"user-{number}"
        async with connected(url) as client:
            await client.sign_in({"id": user})
            private = [f"private-{user}-{at}" for at in range(5)]
            presence = [f"presence-{user}-{at}" for at in range(5)]
            for channel in private:
                await client.ask(channel)
            for channel in presence:
                await client.ask(channel, member(user))
            for channel in (*private, *presence):
                await client.subscribed(channel)
            await client.event("pusher:signin_success")
            assert await client.fence() == []


@pytest.mark.parametrize("channel", ["presence-crowd", "presence-cache-crowd"])
async def test_member_that_the_list_contains_is_not_added_again(
    url: str, monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    read, late = Rosters.census, iter(["late"])
    async with connected(url) as client, connected(url) as other:

        async def joined_meanwhile(rosters: Rosters, name: Any) -> RosterSnapshot:
            for user in late:  # behind the client's own entry, and before the list
                await other.subscribe(channel, member(user))
            return await read(rosters, name)

        monkeypatch.setattr(Rosters, "census", joined_meanwhile)
        told = await client.subscribe(channel, member("ann"))
        assert told["presence"]["ids"] == ["ann", "late"]
        assert [each["event"] for each in await client.fence() if "member" in each["event"]] == []


@pytest.mark.parametrize("channel", ["presence-crowd", "presence-cache-crowd"])
async def test_list_of_members_that_is_too_large_refuses_the_subscription(nodes: Nodes, channel: str) -> None:
    url = await nodes.start(**SMALL_OUTBOX)
    async with connected(url) as first, connected(url) as second, connected(url) as third:
        await first.subscribe(channel, member("one", text="x" * 12_000))
        await second.subscribe(channel, member("two"))
        for _ in range(2):  # nothing is left of the first attempt
            told = await refusal(third, channel, member("three", text="x" * 12_000))
            assert (told["type"], told["status"]) == ("LimitReached", 413)
        assert nodes.gateways[0].node.counts["subscriptions"] == 2
        added = await second.data("pusher_internal:member_added", channel)
        removed = await second.data("pusher_internal:member_removed", channel)
        assert added["user_id"] == removed["user_id"] == "three"


async def test_histories_that_a_client_may_begin_are_limited(nodes: Nodes) -> None:
    rules = json.dumps([{"match": "cache-*", "allow_subscribe": "anyone"}])
    url = await nodes.start(SNORKY_LIMITS__STORED_BYTES_PER_IP="4096", SNORKY_SERVICES__PUBSUB__CHANNELS=rules)
    async with connected(url) as client:
        for number in range(3):
            await client.subscribe(f"cache-{number}")
        for number in range(3):  # what is followed here already costs nothing
            async with connected(url) as other:
                await other.subscribe(f"cache-{number}")
        await client.ask("cache-a")
        for number in range(10):
            await client.ask(f"cache-b-{number}")
        assert (await client.ended())[0] == 4100


async def test_grant_ends_with_its_subscription(nodes: Nodes, url: str) -> None:
    async with connected(url) as client:
        for _ in range(3):
            await client.subscribe("private-a")
            await client.unsubscribe("private-a")
        await client.subscribe("public")
        await client.fence()

        async def are_gone() -> bool:
            return len(nodes.gateways[0].node.auth.grants) == 0

        await eventually(are_gone, within_s=30, what="no grant is left")


@pytest.mark.parametrize("rules", [[], [{"match": "private-*", "allow_subscribe": "token"}]])
async def test_service_of_a_program_must_close_private_channels(rules: list[Any]) -> None:
    app = PusherApp(id="shop", key=KEY, secret=SECRET)
    settings = Settings(public=Public(port=0, pusher_apps={"shop": app}))
    public = ServiceRegistry([PubSubService("pubsub", channels=rules)])
    gateway = Gateway(settings, public=public, private=ServiceRegistry())
    with pytest.raises(ConfigurationError, match="lets everyone subscribe"):
        async with gateway:
            pass


async def test_rules_of_the_settings_open_no_private_channel(nodes: Nodes) -> None:
    rules = [
        {"match": "private-orders.*", "history": 100},
        {"match": "p*", "allow_subscribe": "anyone"},
        {"match": "*-room", "allow_subscribe": "anyone"},
        {"match": "*", "allow_subscribe": "anyone"},
    ]
    url = await nodes.start(SNORKY_SERVICES__PUBSUB__CHANNELS=json.dumps(rules))
    access = nodes.gateways[0].public["pubsub"].access
    assert access is not None
    for name in ("private-orders.7", "private-a-room", "presence-a-room", "private-x", "#server-to-user-7"):
        assert not access.is_open(access.rules.find(name), "subscribe"), name
    for name in ("plain", "public-room", "presents"):
        assert access.is_open(access.rules.find(name), "subscribe"), name
    async with connected(url) as client:
        await client.subscribe("private-orders.7")


async def test_reload_without_the_apps_leaves_private_channels_closed(nodes: Nodes) -> None:
    environ = {**ENV, "SNORKY_REDIS_URL": nodes.redis_url}
    settings = load(None, environ)
    without = {name: value for name, value in environ.items() if "PUSHER" not in name}
    other = json.dumps([{"match": "*", "allow_subscribe": "anyone"}])
    written = load(None, {**without, "SNORKY_SERVICES__PUBSUB__CHANNELS": other})
    async with Gateway(settings) as gateway:
        await gateway.until_ready(DEADLINE_S)
        with capture_logs() as logs:
            await Reloader(gateway, settings, lambda: written).reload()
        told = [each["event"] for each in logs if "settings" in each["event"]]  # others are of the node's start
        assert told == ["changed settings need a restart", "settings reloaded"]
        async with opened("json", gateway.public_urls[0], "closed"):  # the new rules apply
            pass
        with pytest.raises(Refused, match="not_authorized"):
            async with opened("json", gateway.public_urls[0], "private-a"):
                pass


async def test_reload_that_would_open_private_channels_is_refused(nodes: Nodes) -> None:
    environ = {**ENV, "SNORKY_REDIS_URL": nodes.redis_url}
    settings = load(None, environ)
    rules = json.dumps([{"match": "private-*", "allow_subscribe": "anyone"}])
    written = load(None, {**environ, "SNORKY_SERVICES__PUBSUB__CHANNELS": rules})
    async with Gateway(settings) as gateway:
        with capture_logs() as logs:
            await Reloader(gateway, settings, lambda: written).reload()
        (told,) = [each for each in logs if each["log_level"] == "error"]  # others are of the node's start
        assert told["event"] == "settings not reloaded, the rules stay as they are"
        assert "lets everyone subscribe" in told["problem_1"]


async def test_cache_channel_loses_no_event_of_a_backend_that_publishes_through_redis(nodes: Nodes, url: str) -> None:
    async with connected(url) as client, Publisher(nodes.redis_url) as publisher:
        await client.subscribe("private-cache-a")
        for number in range(20):
            await publisher.publish("private-cache-a", {"event": "e", "data": str(number)})
        assert [(await client.event("e"))["data"] for _ in range(20)] == list(map(str, range(20)))
