"""Centrifuge clients: `conn_info`, the claim `info` of a token, in presence, joins and leaves, on all nodes."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import aiohttp
import cent
import pytest

from tests.support.clients import pusher
from tests.support.clients.centrifuge import CentrifugeClient, connected, dialled
from tests.support.clients.centrifuge_protobuf import connected_by_protobuf
from tests.support.processes.nodes import NodeProcess
from tests.support.scenarios.centrifuge_nodes import token
from tests.support.scenarios.protocol_nodes import ENV as NODE_ENV
from tests.support.scenarios.protocol_nodes import Nodes, token_of
from tests.support.servers.hook_backend import HookBackend

ROOM: Final = "room"
MIXED: Final = (
    "presence-room"  # a name that clients of Pusher can have; all subscribe to it with a signature or a token
)
KEY: Final = "a-key-of-a-backend-0123456789abcdef"
RULES = [
    {"match": "room*", "presence": True, "join_leave": True, "allow_subscribe": "anyone"},
    {"match": MIXED, "presence": True, "join_leave": True, "allow_subscribe": "token"},
]
ENV = {
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
    "SNORKY_BACKEND__CONTROL__CLASS": "snorky.services.control:ControlBackend",
    "SNORKY_BACKEND__PUBSUB_BACKEND__CLASS": "snorky.services.pubsub:PubSubBackend",
    "SNORKY_PRIVATE__API_KEY": KEY,
}
ADDED: Final = "pusher_internal:member_added"
ANN: Final = {"name": "Ann €", "avatar": "/a.png", "n": [1, None]}

Connect = Callable[[str, str], AbstractAsyncContextManager[CentrifugeClient]]


each_form = pytest.mark.parametrize("connect", [connected, connected_by_protobuf], ids=["json", "protobuf"])


@pytest.fixture
async def urls(nodes: Nodes) -> tuple[str, str]:
    return await nodes.start(**ENV), await nodes.start(**ENV)


async def joined(client: CentrifugeClient, channel: str = ROOM, **params: Any) -> Any:
    """Subscribe a client; returns the description of it in its own join."""
    await client.call("subscribe", channel=channel, **params)
    return (await client.push(channel, "join"))["info"]


async def presence(client: CentrifugeClient, channel: str = ROOM) -> Any:
    """Return the list of clients that a client gets."""
    return (await client.call("presence", channel=channel))["presence"]


async def api_presence(nodes: Nodes) -> dict[str, Any]:
    """Return the list of clients that a backend gets: `conn_info` by client."""
    api = cent.AsyncClient(f"{nodes.gateways[0].private_urls[0]}/api", api_key=KEY)
    try:
        found = (await api.presence(cent.PresenceRequest(channel=ROOM))).presence
        return {client: info.conn_info for client, info in found.items()}
    finally:
        await api.close()


@each_form
async def test_presence_joins_and_leaves_have_the_info(nodes: Nodes, urls: tuple[str, str], connect: Connect) -> None:
    async with connect(urls[0], token("eve")) as eve, connect(urls[1], token("ann", info=ANN)) as ann:
        without = await joined(eve)
        assert without == {"user": "eve", "client": without["client"]}
        own = await joined(ann)
        assert own == {"user": "ann", "client": own["client"], "conn_info": ANN}
        assert (await eve.push(ROOM, "join"))["info"] == own
        async with connect(urls[1], token("bob", info=False)) as bob:
            told = await joined(bob)
            assert told["conn_info"] is False, "it may be any JSON value"
            assert (await eve.push(ROOM, "join"))["info"] == told
            everybody = {each["client"]: each for each in (without, own, told)}
            assert await presence(eve) == await presence(bob) == everybody
            assert await api_presence(nodes) == {client: each.get("conn_info") for client, each in everybody.items()}
        assert (await eve.push(ROOM, "leave"))["info"] == told
        await ann.call("unsubscribe", channel=ROOM)
        assert (await eve.push(ROOM, "leave"))["info"] == own


@each_form
async def test_info_of_a_pushers_member_and_of_these_clients_is_one(urls: tuple[str, str], connect: Connect) -> None:
    async with pusher.connected(urls[0]) as pat, connect(urls[1], token("ann", info=ANN)) as ann:
        await pat.subscribe(MIXED, pusher.member("pat", name="Pat"))
        own = await joined(ann, MIXED, token=token("ann", channel=MIXED))
        assert await pat.data(ADDED, MIXED) == {"user_id": "ann", "user_info": ANN}
        async with pusher.connected(urls[0]) as paul:
            told = await paul.subscribe(MIXED, pusher.member("paul", name="Paul"))
            assert told["presence"]["hash"] == {"ann": ANN, "pat": {"name": "Pat"}, "paul": {"name": "Paul"}}
            info = (await ann.push(MIXED, "join"))["info"]
            assert (info["user"], info["conn_info"]) == ("paul", {"name": "Paul"})
            found = await presence(ann, MIXED)
            assert found.pop(own["client"]) == own
            named = {each["user"]: each["conn_info"] for each in found.values()}
            assert named == {"pat": {"name": "Pat"}, "paul": {"name": "Paul"}}
        assert (await ann.push(MIXED, "leave"))["info"] == info


async def test_leave_of_a_node_that_was_killed_has_the_info(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_PUBLIC__PING_INTERVAL_S="300")  # the client that waits answers no pings
    async with connected(url) as other:
        await joined(other)
        async with NodeProcess.running({**NODE_ENV, **ENV, "SNORKY_REDIS_URL": nodes.redis_url}) as process:
            async with connected(f"http://127.0.0.1:{process.public_port}", token("ann", info=ANN)) as ann:
                own = await joined(ann)
                assert (await other.push(ROOM, "join"))["info"] == own
                process.kill()
                assert (await other.push(ROOM, "leave"))["info"] == own


async def test_later_joins_have_the_info_of_a_later_token(urls: tuple[str, str]) -> None:
    async with connected(urls[0]) as other, connected(urls[1], token("ann", info=1)) as ann:
        await joined(other)
        await joined(other, "room-later")
        before = await joined(ann)
        assert (await other.push(ROOM, "join"))["info"] == before
        await ann.call("refresh", token=token("ann", info={"v": 2}))
        assert (await joined(ann, "room-later"))["conn_info"] == {"v": 2}
        assert (await other.push("room-later", "join"))["info"]["conn_info"] == {"v": 2}
        assert (await presence(other))[before["client"]] == before, "an entry that is there stays as it is"
        await ann.call("unsubscribe", channel=ROOM)
        assert (await other.push(ROOM, "leave"))["info"] == before
        await ann.call("refresh", token=token("ann"))
        again = await joined(ann)
        assert again == (await other.push(ROOM, "join"))["info"] == {"user": "ann", "client": before["client"]}


async def test_subscriptions_by_the_server_have_it_too(nodes: Nodes, urls: tuple[str, str]) -> None:
    async with connected(urls[0]) as other, dialled(urls[1]) as ann:
        await joined(other)
        told = await ann.call("connect", token=token("ann", info=ANN, channels=[ROOM]))
        info = {"user": "ann", "client": told["client"], "conn_info": ANN}
        assert (await ann.push(ROOM, "join"))["info"] == info
        assert (await other.push(ROOM, "join"))["info"] == info
        assert (await presence(other))[told["client"]] == info


@pytest.mark.parametrize("kind", ["http_stream", "sse"])
async def test_clients_without_a_websocket_have_it_too(urls: tuple[str, str], kind: str) -> None:
    commands: list[Any] = [{"id": 1, "connect": {"token": token("ann", info=ANN)}}]
    commands += [{"id": 2, "subscribe": {"channel": ROOM}}, {"id": 3, "presence": {"channel": ROOM}}]
    async with connected(urls[0]) as other, aiohttp.ClientSession() as http:
        await joined(other)
        data = "\n".join(map(json.dumps, commands))
        async with http.post(f"{urls[1]}/connection/{kind}", data=data) as stream:
            info = (await other.push(ROOM, "join"))["info"]
            assert info == {"user": "ann", "client": info["client"], "conn_info": ANN}
            found: Any = {}
            while found.get("id") != 3:
                line = (await stream.content.readline()).decode().strip().removeprefix("data: ")
                found = json.loads(line or "{}")
                if "push" in found:
                    assert found["push"]["join"]["info"] == info, "its own join"
            assert found["presence"]["presence"][info["client"]] == info
        assert (await other.push(ROOM, "leave"))["info"] == info


async def test_claims_that_a_hook_gives_have_it_too(nodes: Nodes) -> None:
    async with HookBackend({"allow": True, "identity": "ann", "claims": {"info": ANN}}) as backend:
        url = await nodes.start(**ENV, SNORKY_HOOKS__CONNECT__URL=backend.url)
        async with connected(url) as client:
            own = await joined(client)
            assert (own["user"], own["conn_info"]) == ("ann", ANN)
            assert await presence(client) == {own["client"]: own}


async def test_info_that_is_too_large_is_left_out(urls: tuple[str, str]) -> None:
    async with connected(urls[0], token("ann", info="x" * 4_500)) as ann, connected(urls[1]) as other:
        own = await joined(ann)
        assert own == {"user": "ann", "client": own["client"]}
        await joined(other)
        assert (await presence(other))[own["client"]] == own


async def test_roster_of_a_channel_counts_the_info(nodes: Nodes) -> None:
    url = await nodes.start(**ENV, SNORKY_LIMITS__ROSTER_MAX_BYTES="3000")
    async with (
        connected(url, token("ann", info="x" * 2_500)) as ann,
        connected(url, token("bob", info="x" * 2_500)) as bob,
    ):
        await joined(ann)
        await bob.send({"id": 9, "subscribe": {"channel": ROOM}})
        assert (await bob.reply(9))["error"]["code"] == 106
        async with connected(url, token("bob")) as again:
            await joined(again)


async def test_clients_of_snorkys_own_protocol_notice_nothing(urls: tuple[str, str]) -> None:
    headers = {"Authorization": f"Bearer {token('own', info='not for others')}"}
    async with aiohttp.ClientSession() as http, connected(urls[1], token("ann", info=ANN)) as ann:
        async with http.ws_connect(f"{urls[0]}/ws", headers=headers) as socket:

            async def called(command: str, **params: Any) -> Any:
                message = {"command": command, "params": {"channel": ROOM, **params}, "callId": 1}
                await socket.send_json({"service": "pubsub", "message": message})
                return (await socket.receive_json())["message"]["data"]

            await called("subscribe")
            own = await joined(ann)
            told = (await socket.receive_json())["message"]
            assert told == {"type": "joined", "channel": ROOM, "identity": "ann"}
            found = (await called("presence", connections=True))["connections"]
            assert {"connection": own["client"], "identity": "ann"} in found
            assert [set(each) for each in found] == [{"connection", "identity"}] * 2
            assert [each for each in (await presence(ann)).values() if "conn_info" in each] == [own]


async def test_control_shows_the_data_of_entries_to_a_backend(nodes: Nodes, urls: tuple[str, str]) -> None:
    async with connected(urls[1], token("ann", info=ANN)) as ann, connected(urls[0], token_of("bob")) as bob:
        clients = [(await joined(each))["client"] for each in (ann, bob)]
        call = {"command": "presence", "params": {"channel": ROOM, "connections": True}, "callId": 1}
        async with aiohttp.ClientSession(headers={"X-Backend-Key": KEY}) as http:
            address = f"{nodes.gateways[0].private_urls[0]}/backend"
            async with http.post(address, json={"service": "control", "message": call}) as response:
                found = (await response.json())["message"]["data"]["connections"]
    assert {each["connection"]: each.get("data", "none") for each in found} == {clients[0]: ANN, clients[1]: "none"}
