"""Pusher's clients: the handshake, the rules of a connection, signatures, limits, rules of channels, apps.

What they have in common with other protocols is in test_protocols.py; presence, channels and users have files of their
own.
"""

import json
import re
from urllib.parse import urlsplit

import aiohttp
import pytest

from snorky.client.aio import Publisher
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.http.protocols.pusher.names import socket_id_of
from tests.support.clients.any_protocol import DEADLINE_S
from tests.support.clients.pusher import KEY, SubscriptionFailed, connected, dialled, member, signed
from tests.support.clients.raw_ws import RawClient, handshake_head
from tests.support.processes.tools import eventually
from tests.support.scenarios.protocol_nodes import Nodes

OTHER_KEY, OTHER_SECRET = "other-key", "f1b7d94e63a1d8c28d2a5c1f070be376"


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start()


# -- the handshake ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/app/nothing?protocol=7", 4001),
        ("/app/nothing", 4001),
        (f"/app/{KEY}", 4008),
        (f"/app/{KEY}?protocol=", 4008),
        (f"/app/{KEY}?client=js&version=8.4.0", 4008),
        (f"/app/{KEY}?protocol=4", 4007),
        (f"/app/{KEY}?protocol=8", 4007),
        (f"/app/{KEY}?protocol=seven", 4007),
        (f"/app/{KEY}?protocol=%C2%B2", 4007),
        (f"/app/{KEY}?protocol=0000000007", 4007),
    ],
)
async def test_handshake_that_names_no_app_or_protocol_is_told_so(nodes: Nodes, url: str, path: str, code: int) -> None:
    async with dialled(url, path) as client:
        assert (await client.data("pusher:error"))["code"] == code
        assert (await client.ended())[0] == code
        assert client.heard == []


async def test_events_after_a_fault_have_no_effect(nodes: Nodes, url: str) -> None:
    async with dialled(url, "/app/nothing?protocol=7") as client:
        await client.send("pusher:subscribe", {"channel": "a"})
        await client.send("pusher:subscribe", {"channel": "private-a", "auth": signed("x", "", "")})
        assert (await client.ended())[0] == 4001
        assert [each["event"] for each in client.heard] == ["pusher:error"]
    await nodes.until_subscribed(0)


@pytest.mark.parametrize("version", [5, 6, 7])
async def test_connection_begins_with_its_id(nodes: Nodes, url: str, version: int) -> None:
    async with dialled(url, f"/app/{KEY}?protocol={version}&client=js&version=8.4.0&flash=false") as client:
        first = await client.event("pusher:connection_established")
        told = json.loads(first["data"])
        assert re.fullmatch(r"\d+\.\d+", told["socket_id"]) and told["activity_timeout"] == 120
        assert client.heard == [] and first.keys() == {"event", "data"}
        (connection,) = nodes.gateways[0].node.connections
        assert told["socket_id"] == socket_id_of(connection.id)


async def test_without_apps_there_is_no_such_path(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_PUBLIC__PROTOCOLS="[]")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with dialled(url):
            pass
    assert refused.value.status == 404


# -- events of a connection -------------------------------------------------------------------------------------------


async def test_client_that_does_not_read_is_told_to_come_back_later(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_LIMITS__OUTBOX_MAX_BYTES="200000", SNORKY_LIMITS__SEND_BUFFER_BYTES="16384")
    slow = nodes.gateways[-1].node.metrics.slow_consumers_closed
    place = urlsplit(url)
    async with await RawClient.open(str(place.hostname), place.port or 0, receive_buffer_bytes=4096) as client:
        await client.send(handshake_head(path=f"/app/{KEY}?protocol=7"))
        assert (await client.response()).status == 101
        await client.say({"event": "pusher:subscribe", "data": {"channel": "news"}})
        while b"subscription_succeeded" not in (await client.receive())[1]:  # a node counts it before Redis confirms
            pass
        async with Publisher(nodes.redis_url) as publisher:
            for _ in range(100):
                await publisher.publish("news", {"event": "e", "data": "x" * 4_000})

        async def is_closed() -> bool:
            return bool(slow._value.get() == 1)

        await eventually(is_closed, within_s=DEADLINE_S, what="the slow client is closed")
        assert await client.closed() == 4100


async def test_ping_is_answered_and_pong_is_not(url: str) -> None:
    async with connected(url) as client:
        await client.send("pusher:pong", {})
        await client.send("pusher:ping", {})
        assert await client.event("pusher:pong") == {"event": "pusher:pong", "data": "{}"}
        await client.send("pusher:ping")
        await client.event("pusher:pong")
        assert client.heard == []


async def test_binary_frame_ends_the_connection(url: str) -> None:
    async with connected(url) as client:
        await client.send_bytes(b'{"event":"pusher:ping"}')
        assert (await client.ended())[0] == 1003


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "{}",
        '{"event":7}',
        '{"event":"pusher:nothing"}',
        '{"event":"subscribe","data":{"channel":"a"}}',
        '{"event":"other:subscribe","data":{"channel":"a"}}',
        '{"event":"pusher_internal:subscription_succeeded","channel":"a","data":"{}"}',
        '{"event":"pusher:signin"' + "x" * 10,
    ],
)
async def test_frame_that_is_no_event_is_answered_with_an_error(nodes: Nodes, url: str, text: str) -> None:
    async with connected(url) as client:
        await client.send_text(text)
        assert (await client.data("pusher:error"))["code"] is None
        assert await client.fence() == []
    await nodes.until_subscribed(0)


async def test_too_much_bad_input_ends_the_connection(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_LIMITS__CLIENT_ERRORS_PER_MINUTE="5")
    async with connected(url) as client, connected(url) as other:
        for _ in range(5):
            await client.send_text("no json")
        assert len(await client.fence()) == 5
        await client.send("pusher:subscribe", {"channel": "a b"})
        assert (await client.ended())[0] == 4100
        assert len(client.heard) == 5
        assert await other.fence() == []


async def test_what_a_client_may_not_do_is_no_bad_input(nodes: Nodes) -> None:
    """Pages send client events and subscriptions before they know whether they may."""
    url = await nodes.start(SNORKY_LIMITS__CLIENT_ERRORS_PER_MINUTE="5")
    async with connected(url) as client:
        for number in range(10):
            await client.ask(f"private-{number}", auth="wrong")
            await client.send("client-e", {}, "news")
        assert len(await client.fence()) == 20


async def test_client_that_sends_too_much_is_told_so_and_then_ended(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_LIMITS__MESSAGES_PER_S="1", SNORKY_LIMITS__MESSAGES_BURST="3")
    async with connected(url) as client, connected(url) as subscriber:
        for _ in range(100):
            await client.send("pusher:ping", {})
        assert (await client.ended())[0] == 4100
        names = [each["event"] for each in client.heard]
        assert names[:3] == ["pusher:pong"] * 3 and "pusher:error" in names[3:]
        for _ in range(3):
            await subscriber.send("pusher:ping", {})
        await subscriber.ask("news")
        assert (await subscriber.ended())[0] == 4100, "else it would not try again"


# -- subscriptions ----------------------------------------------------------------------------------------------------


async def test_second_subscription_is_refused_and_the_first_one_stays(nodes: Nodes, url: str) -> None:
    async with connected(url) as client, Publisher(nodes.redis_url) as publisher:
        assert await client.subscribe("news") == {}
        await client.ask("news")
        assert "Existing subscription" in (await client.data("pusher:error"))["message"]
        await publisher.publish("news", {"event": "e", "data": "once"})
        assert await client.event("e") == {"event": "e", "channel": "news", "data": "once"}
        assert await client.fence() == []


async def test_client_that_unsubscribes_receives_nothing_more_and_may_come_back(nodes: Nodes, url: str) -> None:
    async with connected(url) as client, connected(url) as other, Publisher(nodes.redis_url) as publisher:
        for each in (client, other):
            await each.subscribe("private-a")
        await client.unsubscribe("private-a")
        await client.unsubscribe("never-subscribed")
        assert await client.fence() == [], "there is no answer"
        await nodes.until_subscribed(1)
        await publisher.publish("private-a", {"event": "e", "data": "1"})
        await other.event("e")
        assert await client.fence() == []
        await client.subscribe("private-a")
        await publisher.publish("private-a", {"event": "e", "data": "2"})
        assert (await client.event("e"))["data"] == "2"


@pytest.mark.parametrize("channel", ["", "a b", "a:b", "#a", "x" * 201, "é", 7, None, ["a"]])
async def test_channel_with_another_name_is_refused(nodes: Nodes, url: str, channel: object) -> None:
    async with connected(url) as client:
        await client.send("pusher:subscribe", {"channel": channel})
        if isinstance(channel, str):
            with pytest.raises(SubscriptionFailed) as failed:
                await client.subscribed(channel)
            assert failed.value.status == 400
        else:
            assert "channel's name" in (await client.data("pusher:error"))["message"]
        for data in ("text", None, 7, ["a"]):
            await client.send("pusher:subscribe", data)
            await client.event("pusher:error")
        assert await client.fence() == []
    await nodes.until_subscribed(0)


@pytest.mark.parametrize("channel", ["private-a", "private-encrypted-a", "private-cache-a", "presence-a"])
async def test_only_the_signature_of_this_channel_and_connection_is_accepted(
    nodes: Nodes, url: str, channel: str
) -> None:
    data = member("ann") if channel.startswith("presence") else None
    async with connected(url) as client, connected(url) as other:
        right = client.auth(channel, data)
        wrong = [
            "",
            right[:-1],
            right.replace(KEY, OTHER_KEY),
            right.partition(":")[2],
            client.auth(f"{channel}b", data),
            client.auth(channel, member("bob")),
            client.auth(f":user::{channel}"),
            other.auth(channel, data),
            signed(f"{client.socket_id}:{channel}", KEY, OTHER_SECRET),
        ]
        for auth in wrong:
            with pytest.raises(SubscriptionFailed) as failed:
                await client.subscribe(channel, data, auth=auth)
            assert failed.value.data == {"type": "AuthError", "error": "Invalid signature", "status": 401}, auth
        await client.send("pusher:subscribe", {"channel": channel})
        with pytest.raises(SubscriptionFailed):
            await client.subscribed(channel)
        await nodes.until_subscribed(0)
        await client.subscribe(channel, data, auth=right)


async def test_signature_of_a_private_channel_says_nothing_about_channel_data(url: str) -> None:
    """Else a client could add data to a signature that its backend made without any."""
    async with connected(url) as client:
        auth = client.auth("presence-a")
        with pytest.raises(SubscriptionFailed) as failed:
            await client.subscribe("presence-a", member("admin"), auth=auth)
        assert failed.value.status == 401
        await client.subscribe("private-a", "whatever it is", auth=client.auth("private-a"))


# -- rules of channels, limits, failures ------------------------------------------------------------------------------


async def test_rule_of_the_operator_refuses_also_what_is_signed(nodes: Nodes) -> None:
    rules = [
        {"match": "private-closed", "allow_subscribe": "nobody"},
        {"match": "closed", "allow_subscribe": "nobody"},
        {"match": "private-full", "subscribers_max": 1},
        {"match": "presence-none", "presence": False, "join_leave": False},
    ]
    url = await nodes.start(
        SNORKY_SERVICES__PUBSUB__CHANNELS=json.dumps(rules), SNORKY_LIMITS__CHANNELS_PER_CONNECTION="2"
    )
    async with connected(url) as client, connected(url) as other:
        for channel in ("private-closed", "closed", "presence-none"):
            data = member("ann") if channel == "presence-none" else None
            with pytest.raises(SubscriptionFailed) as failed:
                await client.subscribe(channel, data)
            assert (failed.value.status, failed.value.data["type"]) == (401, "AuthError"), channel
        await client.subscribe("private-full")
        with pytest.raises(SubscriptionFailed) as failed:
            await other.subscribe("private-full")
        assert (failed.value.status, failed.value.data["type"]) == (413, "LimitReached")
        await client.subscribe("private-a")
        with pytest.raises(SubscriptionFailed) as failed:
            await client.subscribe("private-b")
        assert failed.value.status == 413
        assert await client.fence() == [] == await other.fence()


@pytest.mark.parametrize("channel", ["news", "private-a", "private-cache-a", "presence-a"])
async def test_failure_of_redis_ends_the_connection_which_then_tries_again(
    nodes: Nodes, url: str, monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    async def fail(key: str) -> None:
        raise BrokerUnavailable(key)

    data = member("ann") if channel.startswith("presence") else None
    async with connected(url) as client:
        monkeypatch.setattr(nodes.gateways[0].node._broker, "subscribe", fail)
        await client.ask(channel, data)
        code, reason = await client.ended()
        assert code == 4100 and reason.startswith("unavailable")
        assert client.heard == []
    await nodes.until_subscribed(0)
    monkeypatch.undo()
    async with connected(url) as again:
        found = await again.subscribe(channel, data)
        assert channel != "presence-a" or found["presence"]["count"] == 1, "it is listed once"
