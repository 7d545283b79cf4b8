"""Centrifuge clients: the rules of a connection, tokens, calls of services, limits.

What they have in common with other protocols is in test_protocols.py.
"""

import time
from typing import Any

import jwt
import pytest

from snorky.gateway.http.protocols.centrifuge import websocket
from tests.support.clients.centrifuge import CommandFailed, connected, dialled
from tests.support.scenarios.centrifuge_nodes import ENV, token
from tests.support.scenarios.protocol_nodes import CHANNEL, Nodes, token_of
from tests.support.scenarios.tokens import SECRET


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start(**ENV)


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
        assert (await client.push("news", "pub"))["data"] == "of pub/sub"
        assert client.news == []


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
        assert client.news == []


@pytest.mark.parametrize("bad", ["nonsense", jwt.encode({"sub": "a", "exp": time.time() + 60}, SECRET[::-1])])
async def test_commands_after_a_connect_that_failed_have_no_effect(nodes: Nodes, url: str, bad: str) -> None:
    async with dialled(url) as client, connected(url) as other:
        await other.call("subscribe", channel=CHANNEL)
        publish = {"channel": CHANNEL, "data": "not connected"}
        await client.send({"id": 1, "connect": {"token": bad}}, {"id": 2, "publish": publish})
        assert await client.ended() == (3500, "invalid token") and client.news == []
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
