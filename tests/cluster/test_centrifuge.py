"""Centrifuge clients: the rules of a connection, tokens, recovery, presence, subscriptions by the server, limits.

What they have in common with other protocols is in test_protocols.py.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest

from snorky.client import AsyncSnorkyBackend, SnorkyHTTPTransport
from snorky.client.aio import Publisher
from snorky.client.control import AsyncControl
from snorky.gateway.http.protocols.centrifuge import websocket
from snorky.gateway.node import Node
from tests.support.clients.any_protocol import DEADLINE_S
from tests.support.clients.centrifuge import CentrifugeClient, CommandFailed, connected, dialled
from tests.support.processes.tools import eventually
from tests.support.scenarios.protocol_nodes import CHANNEL, Nodes, token_of
from tests.support.scenarios.tokens import SECRET

TOLD = "kept:told"  # a channel with presence and joins
RULES = [
    {"match": TOLD, "history": 10, "presence": True, "join_leave": True, "allow_subscribe": "anyone"},
    {"match": "by-token:*", "history": 10, "allow_subscribe": "token", "allow_publish": "token"},
    {"match": "short", "history": 2, "allow_subscribe": "anyone", "allow_publish": "anyone"},
    {"match": "kept:*", "history": 1000, "allow_subscribe": "anyone", "allow_publish": "anyone"},
    {"match": "#*", "history": 10, "allow_subscribe": "nobody", "allow_publish": "subscriber"},
    {"match": "*", "allow_subscribe": "anyone", "allow_publish": "anyone"},
]
ENV = {
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
    "SNORKY_SERVICES__CHAT__CLASS": "snorky.services.chat:ChatService",
    "SNORKY_SERVICES__CHAT__UNMATCHED": "open",
    "SNORKY_BACKEND__CONTROL__CLASS": "snorky.services.control:ControlBackend",
}


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start(**ENV)


def token(identity: str, *, for_s: float = 60, **claims: Any) -> str:
    """Make a token as Centrifugo's users do: a connection token, or with `channel` a subscription token."""
    return jwt.encode({"sub": identity, "exp": time.time() + for_s, **claims}, SECRET, algorithm="HS256")


# -- the rules of a connection ----------------------------------------------------------------------------------------


async def test_connect_is_answered_first_and_commands_of_its_frame_after_it(url: str) -> None:
    async with dialled(url) as client:
        commands: list[Any] = [
            {"connect": {"token": token_of("ann")}},
            {"subscribe": {"channel": "a"}},
            {"publish": {"channel": "a", "data": 1}},
        ]
        await client.send(*({"id": number, **each} for number, each in enumerate(commands, 1)))
        seen: list[Any] = []
        while len(seen) < 4:
            await client._hear()
            seen, client.heard = seen + client.heard, []
        assert [each.get("id") for each in seen[:2]] == [1, 2]
        assert sorted(str(each.get("id")) for each in seen[2:]) == ["3", "None"]


async def test_reply_to_connect_says_who_and_for_how_long(url: str) -> None:
    async with dialled(url) as client:
        told = await client.call("connect", token=token("ann", for_s=30))
    assert told["expires"] is True and 25 <= told["ttl"] <= 30
    assert (told["pong"], told["ping"]) == (True, 10) and told["version"].startswith("snorky ")
    assert told["client"].startswith(told["node"])


@pytest.mark.parametrize(
    "frame",
    [
        '{"id":1,"subscribe":{"channel":"a"}}',
        "no json",
        "[]",
        '{"id":1}',
        '{"id":1,"connect":{},"ping":{}}',
        '{"id":-1,"connect":{}}',
        '{"id":1,"connect":[]}',
        '{"connect":{}}',
        '{"id":1,"connect":{}}\n{"id":2,"connect":{}}',
        '{"id":1,"connect":{"token":7}}',
        '{"id":1,"connect":{"subs":{"a":{"recover":true,"offset":-1}}}}',
    ],
)
async def test_frame_that_is_no_command_here_closes_the_connection(url: str, frame: str) -> None:
    async with dialled(url) as client:
        await client.send_text(frame)
        assert await client.ended() == (3501, "bad request")


async def test_command_with_bad_parameters_gets_an_error_and_too_many_end_the_connection(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_LIMITS__CLIENT_ERRORS_PER_MINUTE="9")
    async with connected(url) as client:
        for method, params in (
            ("subscribe", {}),
            ("subscribe", {"channel": "x" * 256}),
            ("subscribe", {"channel": "a", "recover": True, "offset": -1}),
            ("publish", {"channel": "a"}),
            ("history", {"channel": "a", "limit": "1"}),
            ("history", {"channel": "a", "since": {"offset": 2**60}}),
            ("rpc", {"method": "chat.join", "data": "no object"}),
        ):
            with pytest.raises(CommandFailed) as failed:
                await client.call(method, **params)
            assert failed.value.code == 107, (method, params)
        for number in range(100, 120):
            await client.send({"id": number, "publish": {}})
        assert (await client.ended())[0] == 3509


async def test_client_that_does_not_connect_is_stale(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CONNECT_TIMEOUT_S", 0.2)
    async with dialled(url) as silent, connected(url) as other:
        assert (await silent.ended())[0] == 3502
        await other.call("ping")


async def test_ping_is_an_empty_reply_and_its_pong_an_empty_command(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_PUBLIC__PING_INTERVAL_S="0.4", SNORKY_LIMITS__FRAMES_PER_S="1")
    async with connected(url) as client, connected(url) as noisy, connected(url) as silent:
        await noisy.send_text("{}\n" * 14)
        assert (await noisy.ended())[0] == 3504, "pongs without a ping count as frames"
        for _ in range(4):
            await client.ping()
            await client.send_text("{}")
        await client.call("ping")
        assert (await silent.ended())[0] == 1006, "a client that does not answer pings has gone"


@pytest.mark.parametrize(
    ("commands", "limit"),
    [([{"ping": {}}], "MESSAGES"), ([{"rpc": {"method": "x"}}], "MESSAGES"), ([], "FRAMES")],
)
async def test_what_no_service_takes_counts_too(nodes: Nodes, commands: list[Any], limit: str) -> None:
    url = await nodes.start(**ENV, **{f"SNORKY_LIMITS__{limit}_PER_S": "1", "SNORKY_LIMITS__MESSAGES_BURST": "5"})
    async with connected(url) as client:
        for number in range(100):
            await client.send(*({"id": number + 2, **each} for each in commands))
        assert (await client.ended())[0] == 3504


async def test_channels_of_other_services_are_not_heard(nodes: Nodes, url: str) -> None:
    async with connected(url, token_of("ann")) as client, connected(url, token_of("bob")) as other:
        await client.call("subscribe", channel="news")
        for each in (client, other):
            await each.call("rpc", method="chat.join", data={"channel": "news"})
        await other.call("rpc", method="chat.send", data={"channel": "news", "body": "of the chat"})
        await other.call("publish", channel="news", data="of pub/sub")
        assert await client.push("news", "pub") == {"data": "of pub/sub"}
        assert client.heard == []


async def test_send_has_no_receiver(url: str) -> None:
    async with connected(url) as client:
        await client.send({"send": {"data": {}}})
        assert (await client.ended())[0] == 3508


# -- tokens -----------------------------------------------------------------------------------------------------------


async def test_expired_token_gets_an_error_that_asks_for_another_one(url: str) -> None:
    async with dialled(url) as client:
        await client.send({"id": 1, "connect": {"token": token("ann", for_s=-60)}}, {"id": 2, "ping": {}})
        assert (await client.reply(1))["error"] == {"code": 109, "message": "token expired"}
        assert (await client.ended())[0] == 3005
        assert client.heard == []


@pytest.mark.parametrize("bad", ["nonsense", jwt.encode({"sub": "a", "exp": time.time() + 60}, SECRET[::-1])])
async def test_commands_after_a_connect_that_failed_have_no_effect(nodes: Nodes, url: str, bad: str) -> None:
    async with dialled(url) as client, connected(url) as other:
        await other.call("subscribe", channel=CHANNEL)
        publish = {"channel": CHANNEL, "data": "not connected"}
        await client.send({"id": 1, "connect": {"token": bad}}, {"id": 2, "publish": publish})
        assert await client.ended() == (3500, "invalid token") and client.heard == []
        await other.call("publish", channel=CHANNEL, data="connected")
        assert (await other.push(CHANNEL, "pub"))["data"] == "connected"


async def test_refresh_extends_a_connection_and_ends_it_with_another_users_token(url: str) -> None:
    async with connected(url, token("ann", for_s=20)) as client:
        told = await client.call("refresh", token=token("ann", for_s=50))
        assert told["expires"] is True and 45 <= told["ttl"] <= 50
        with pytest.raises(CommandFailed) as failed:
            await client.call("refresh", token=token("ann", for_s=-60))
        assert failed.value.code == 109
    async with connected(url, token("ann")) as client:
        await client.send({"id": 9, "refresh": {"token": token("bob")}})
        assert await client.ended() == (3500, "invalid token")


async def test_connection_ends_when_its_token_expires(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_AUTH__LEEWAY_S="0")
    async with connected(url, token("ann", for_s=1)) as client:
        assert (await client.ended())[0] == 3005


async def test_subscription_token_permits_its_channel_and_is_replaced(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_AUTH__LEEWAY_S="0")
    channel = "by-token:a"
    async with connected(url, token("ann")) as client:
        for wrong, code in (
            ({}, 103),
            ({"token": "nonsense"}, 103),
            ({"token": token("bob", channel=channel)}, 103),
            ({"token": token("ann", channel="by-token:b")}, 103),
            ({"token": token("ann", channel=channel, for_s=-60)}, 109),
        ):
            with pytest.raises(CommandFailed) as failed:
                await client.call("subscribe", channel=channel, **wrong)
            assert failed.value.code == code, wrong
        told = await client.call("subscribe", channel=channel, token=token("ann", channel=channel, for_s=20))
        assert told["expires"] is True and 15 <= told["ttl"] <= 20
        later = token("ann", channel=channel, for_s=1.5)
        assert (await client.call("sub_refresh", token=later))["expires"] is True, "the token names the channel"
        assert await client.push(channel, "unsubscribe") == {"code": 2501, "reason": "Token expired"}


# -- recovery, history ------------------------------------------------------------------------------------------------


async def missed(client: CentrifugeClient, url: str, **recover: Any) -> Any:
    async with connected(url) as again:
        return await again.call("subscribe", recover=True, **recover)


async def test_recovery_by_epoch_and_offset_or_by_offset_alone(nodes: Nodes, url: str) -> None:
    async with connected(url) as client:
        begun = await client.call("subscribe", channel="short")
        assert (begun["recoverable"], begun["positioned"], begun["offset"]) == (True, True, 0)
        for number in range(1, 5):
            await client.call("publish", channel="short", data=number)
        kept = [{"data": 3, "offset": 3}, {"data": 4, "offset": 4}]
        for epoch in (begun["epoch"], ""):
            found = await missed(client, url, channel="short", offset=2, epoch=epoch)
            assert (found["recovered"], found["was_recovering"]) == (True, True)
            assert (found["publications"], found["offset"]) == (kept, 2)
        lost = {"recovered": False, "was_recovering": True, "offset": 4, "publications": None}
        for offset, epoch in ((1, begun["epoch"]), (5, begun["epoch"]), (3, "another")):
            found = await missed(client, url, channel="short", offset=offset, epoch=epoch)
            assert {name: found.get(name) for name in lost} == lost
        async with connected(url) as again:
            asked = {"channel": "short", "recover": True, "epoch": begun["epoch"]}
            with pytest.raises(CommandFailed) as failed:
                await again.call("subscribe", **asked, offset=1, flag=2)
            assert failed.value.code == 112
            assert (await again.call("subscribe", **asked, offset=2, flag=2))["recovered"], "it was not subscribed"


async def lose(nodes: Nodes, channel: str) -> None:
    """Let the first node miss a publication that the history no longer has."""
    node = nodes.gateways[0].node
    async with Publisher(nodes.redis_url) as publisher:
        async with losing(node, channel):
            await publisher.publish(channel, "lost")
        await node.channels.remove_history("pubsub", channel)
        await publisher.publish(channel, "kept")


@asynccontextmanager
async def losing(node: Node, channel: str) -> AsyncIterator[None]:
    """Let the node drop what it receives, until it has dropped a message of a channel of `pubsub`."""
    deliver, dropped = node._fanout.deliver, asyncio.Event()

    def drop(batch: Mapping[str, Any]) -> None:
        if f"pubsub:{channel}" in batch:
            dropped.set()

    node._fanout.deliver = drop  # type: ignore[method-assign]
    yield
    async with asyncio.timeout(DEADLINE_S):
        await dropped.wait()
    node._fanout.deliver = deliver  # type: ignore[method-assign]


async def test_subscription_ends_at_a_gap_and_the_next_one_says_so(nodes: Nodes, url: str) -> None:
    async with connected(url) as client:
        begun = await client.call("subscribe", channel=CHANNEL)
        await client.call("publish", channel=CHANNEL, data="first")
        await client.push(CHANNEL, "pub")
        await lose(nodes, CHANNEL)
        assert (await client.push(CHANNEL, "unsubscribe"))["code"] == 2500
        await client.call("publish", channel=CHANNEL, data="behind the gap")
        await nodes.until_subscribed(0)
        assert client.heard == [], "a later message would hide the gap"
        again = await client.call("subscribe", channel=CHANNEL, recover=True, epoch=begun["epoch"], offset=1)
        assert (again["recovered"], again["offset"]) == (False, 4)
        await client.call("publish", channel=CHANNEL, data="after it")
        assert await client.push(CHANNEL, "pub") == {"data": "after it", "offset": 5}


async def test_connection_ends_at_a_gap_of_a_subscription_by_the_server(nodes: Nodes, url: str) -> None:
    async with connected(url, token("ann", channels=[CHANNEL])) as client, connected(url) as other:
        await other.call("publish", channel=CHANNEL, data="first")
        await client.push(CHANNEL, "pub")
        await lose(nodes, CHANNEL)
        assert (await client.ended())[0] == 3010
        assert client.heard == []


@pytest.mark.parametrize("recover", [{}, {"recover": True}])
async def test_second_subscription_is_refused(url: str, recover: Any) -> None:
    async with connected(url, token("ann", channels=["by-token:a"])) as client:
        await client.call("subscribe", channel=CHANNEL)
        for channel in (CHANNEL, "by-token:a"):
            with pytest.raises(CommandFailed) as failed:
                await client.call("subscribe", channel=channel, **recover)
            assert failed.value.code == 105


async def test_reply_comes_before_what_its_channel_receives(nodes: Nodes, url: str) -> None:
    broker = nodes.gateways[0].node._broker
    subscribe = broker.subscribe

    async def slowly(key: str) -> None:
        await subscribe(key)
        await asyncio.sleep(0.3)

    async with connected(url) as client, connected(url) as other:
        await other.call("subscribe", channel="busy")
        broker.subscribe = slowly  # type: ignore[method-assign]
        await client.send({"id": 5, "subscribe": {"channel": "busy"}})
        await asyncio.sleep(0.1)
        await other.call("publish", channel="busy", data="meanwhile")
        await other.push("busy", "pub")
        seen: list[Any] = []
        while len(seen) < 2:
            await client._hear()
            seen, client.heard = [*seen, *filter(None, client.heard)], []  # without pings
        assert seen[0].get("id") == 5 and seen[1]["push"]["pub"] == {"data": "meanwhile"}, seen


async def test_history_is_paged_in_both_directions(url: str) -> None:
    async with connected(url) as client:
        for number in range(1, 8):
            await client.call("publish", channel=CHANNEL, data={"number": number})

        async def page(**asked: Any) -> list[int]:
            found = await client.call("history", channel=CHANNEL, **asked)
            assert found["offset"] == 7 and found["epoch"]
            return [each["offset"] for each in found["publications"]]

        epoch = (await client.call("history", channel=CHANNEL))["epoch"]
        assert await page() == []
        assert await page(limit=-1) == [1, 2, 3, 4, 5, 6, 7]
        assert await page(limit=2) == [1, 2]
        assert await page(limit=2, since={"epoch": epoch, "offset": 2}) == [3, 4]
        assert await page(limit=2, reverse=True) == [7, 6]
        assert await page(limit=3, reverse=True, since={"epoch": epoch, "offset": 3}) == [2, 1]
        assert await page(limit=3, reverse=True, since={}) == []
        with pytest.raises(CommandFailed) as failed:
            await page(limit=1, since={"epoch": "another", "offset": 1})
        assert failed.value.code == 112


# -- presence ---------------------------------------------------------------------------------------------------------


async def test_presence_and_joins_are_of_connections_on_all_nodes(nodes: Nodes, url: str) -> None:
    other_url = await nodes.start(**ENV)
    async with connected(url, token_of("ann")) as first, connected(other_url, token_of("ann")) as second:
        await first.call("subscribe", channel=TOLD)
        own = (await first.push(TOLD, "join"))["info"]
        await second.call("subscribe", channel=TOLD)
        assert (await second.push(TOLD, "join"))["info"]["client"] != own["client"]
        joined = (await first.push(TOLD, "join"))["info"]
        assert joined["user"] == own["user"] == "ann"
        async with connected(other_url) as third:
            await third.call("subscribe", channel=TOLD)
            anonymous = (await first.push(TOLD, "join"))["info"]
            assert anonymous["user"] == ""
            assert (await second.push(TOLD, "join"))["info"] == anonymous
            present = (await first.call("presence", channel=TOLD))["presence"]
            assert present == {each["client"]: each for each in (own, joined, anonymous)}
            stats = await first.call("presence_stats", channel=TOLD)
            assert stats == {"num_clients": 3, "num_users": 2}
        assert (await first.push(TOLD, "leave"))["info"]["client"] == anonymous["client"]
        await second.call("unsubscribe", channel=TOLD)
        assert (await first.push(TOLD, "leave"))["info"]["client"] == joined["client"]
        await first.call("ping")
        assert not [each for each in (*first.heard, *second.heard) if "join" in each.get("push", {})]


async def test_joins_that_a_node_missed_are_told_by_connection(nodes: Nodes, url: str) -> None:
    other_url = await nodes.start(**ENV)
    async with connected(url, token_of("ann")) as first, connected(other_url, token_of("ann")) as second:
        await first.call("subscribe", channel=TOLD)
        await first.push(TOLD, "join")
        node = nodes.gateways[0].node

        async def is_counted() -> bool:
            assert node._roster_sync is not None
            return node._roster_sync._followed[f"pubsub:{TOLD}"].version is not None

        await eventually(is_counted, within_s=DEADLINE_S, what="the node knows the members")
        async with losing(node, TOLD):
            await second.call("subscribe", channel=TOLD)
        node.on_interrupted()
        assert (await first.push(TOLD, "join"))["info"]["user"] == "ann"


# -- subscriptions by the server --------------------------------------------------------------------------------------


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
        assert client.heard[0].get("id") == 1, client.heard
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
        assert client.heard == []
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


# -- rpc, limits ------------------------------------------------------------------------------------------------------


async def test_rpc_calls_a_command_of_another_service(url: str) -> None:
    async with connected(url, token_of("ann")) as client:
        found = await client.call("rpc", method="chat.join", data={"channel": "room"})
        assert found["data"]["members"] == ["ann"]
        for method in ("chat.nothing", "nothing.join", "join", "pubsub.subscribe", "auth.refresh"):
            with pytest.raises(CommandFailed) as failed:
                await client.call("rpc", method=method, data={})
            assert failed.value.code == 104, method
        with pytest.raises(CommandFailed) as failed:
            await client.call("rpc", method="chat.join", data={"channel": "room"})
        assert failed.value.code == 400 and "Already joined" in str(failed.value)


async def test_each_command_of_a_frame_counts(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_LIMITS__MESSAGES_PER_S="1", SNORKY_LIMITS__MESSAGES_BURST="3")
    async with connected(url) as client:
        commands = [{"id": number, "publish": {"channel": "a", "data": 1}} for number in range(2, 8)]
        await client.send(*commands)
        replies = [await client.reply(number) for number in range(2, 8)]
        assert [each["error"]["code"] for each in replies if "error" in each] == [111] * 3
        assert replies[-1]["error"]["temporary"] is True
