"""Pusher's HTTP API over two nodes by `pusher` of PyPI, unmodified: all its methods, and its signatures for clients."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pusher  # type: ignore[import-untyped]  # ships no annotations
import pytest
from nacl.secret import SecretBox
from pusher.crypto import generate_shared_secret  # type: ignore[import-untyped]

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.http.protocols.pusher.signatures import sign
from tests.support.clients.pusher import PusherClient, connected
from tests.support.clients.pusher_api import API_KEY, API_SECRET, APP, BESIDE_SHOP
from tests.support.scenarios.protocol_nodes import Nodes

ROOM = "presence-room;@a,b=c.d"
MASTER = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


class Library:
    """The library, called in threads. port: of the node."""

    def __init__(self, port: int, *, key: str = API_KEY, secret: str = API_SECRET) -> None:
        self.own = pusher.Pusher(
            APP, key, secret, ssl=False, host="127.0.0.1", port=port, encryption_master_key_base64=MASTER
        )

    async def call(self, name: str, *about: Any, **more: Any) -> Any:
        """Call a method."""
        method: Callable[..., Any] = getattr(self.own, name)
        return await asyncio.to_thread(method, *about, **more)

    async def authorize(self, client: PusherClient, channel: str, data: Any = None) -> Any:
        """Subscribe a client as the library authorizes it; returns the data of the success."""
        answer = await self.call("authenticate", channel, client.socket_id, data)
        await client.send(
            "pusher:subscribe", {"channel": channel, **{k: v for k, v in answer.items() if k != "shared_secret"}}
        )
        return await client.subscribed(channel)

    def close(self) -> None:
        """Close its connections."""
        self.own._pusher_client.http.session.close()


@pytest.fixture
async def urls(nodes: Nodes) -> tuple[str, str]:
    return await nodes.start(**BESIDE_SHOP), await nodes.start(**BESIDE_SHOP)


@pytest.fixture
async def library(urls: tuple[str, str]) -> AsyncIterator[Library]:
    made = Library(int(urls[0].rpartition(":")[2]))
    yield made
    made.close()


@pytest.fixture
async def clients(urls: tuple[str, str]) -> AsyncIterator[tuple[PusherClient, PusherClient]]:
    async with connected(urls[0], API_KEY, API_SECRET) as one, connected(urls[1], API_KEY, API_SECRET) as other:
        yield one, other


Clients = tuple[PusherClient, PusherClient]


async def test_trigger(library: Library, clients: Clients) -> None:
    for client in clients:
        await client.subscribe("news")
        await library.authorize(client, "private-a")
    assert await library.call("trigger", ["news", "private-a"], "shipped", {"id": 7, "ü": None}) == {}
    for client in clients:
        for channel in ("news", "private-a"):
            assert json.loads((await client.event("shipped", channel))["data"]) == {"id": 7, "ü": None}
    assert await library.call("trigger", "news", "shipped", "text", clients[0].socket_id) == {}
    assert (await clients[1].event("shipped"))["data"] == "text"
    assert await clients[0].fence() == []


async def test_trigger_of_an_encrypted_channel(library: Library, clients: Clients) -> None:
    channel = "private-encrypted-a"
    await library.authorize(clients[1], channel)
    assert await library.call("trigger", channel, "secret", {"id": 7}) == {}
    data = json.loads((await clients[1].event("secret"))["data"])
    box = SecretBox(generate_shared_secret(channel.encode(), base64.b64decode(MASTER)))
    text = box.decrypt(base64.b64decode(data["ciphertext"]), base64.b64decode(data["nonce"]))
    assert json.loads(text) == {"id": 7}


async def test_trigger_batch(library: Library, clients: Clients) -> None:
    await clients[0].subscribe("news")
    await clients[1].subscribe("news")
    batch = [
        {"channel": "news", "name": "a", "data": {"n": n}, "socket_id": clients[n % 2].socket_id} for n in range(10)
    ]
    assert await library.call("trigger_batch", batch) == {}
    for number, client in enumerate(clients):
        heard = [json.loads((await client.event("a"))["data"])["n"] for _ in range(5)]
        assert heard == [n for n in range(10) if n % 2 != number]


async def test_questions_about_channels_and_users(library: Library, clients: Clients) -> None:
    for user, client in zip(("ann", "bob"), clients, strict=True):
        await library.authorize(client, ROOM, {"user_id": user, "user_info": {"name": user.title()}})
    await clients[0].subscribe("news")
    assert await library.call("channels_info") == {"channels": {"news": {}, ROOM: {}}}
    found = await library.call("channels_info", "presence-", ["user_count"])
    assert found == {"channels": {ROOM: {"user_count": 2}}}
    assert await library.call("channels_info", ROOM[:-1]) == {"channels": {ROOM: {}}}
    found = await library.call("channel_info", ROOM, ["user_count", "subscription_count"])
    assert found == {"occupied": True, "user_count": 2, "subscription_count": 2}
    assert await library.call("channel_info", "empty") == {"occupied": False}
    assert await library.call("users_info", ROOM) == {"users": [{"id": "ann"}, {"id": "bob"}]}
    for method, about in (
        ("users_info", ["news"]),
        ("channel_info", ["news", ["user_count"]]),
        ("channels_info", [None, ["user_count"]]),
    ):
        with pytest.raises(pusher.errors.PusherBadRequest):
            await library.call(method, *about)


async def test_users(library: Library, clients: Clients) -> None:
    user = "ann;,@x=y.z"
    one, other = clients
    for client in clients:
        answer = await library.call("authenticate_user", client.socket_id, {"id": user, "user_info": {"n": 1}})
        await client.send("pusher:signin", answer)
        assert await client.data("pusher:signin_success") == {"user_data": answer["user_data"]}
        await client.subscribe(f"#server-to-user-{user}")
    assert await library.call("send_to_user", user, "hello", {"n": 1}) == {}
    for client in clients:
        assert (await client.event("hello"))["data"] == '{"n": 1}'
    assert await library.call("terminate_user_connections", user) == {}
    assert [(await client.ended())[0] for client in (one, other)] == [4009, 4009]


async def test_wrong_secret_and_wrong_key_are_refused(urls: tuple[str, str], clients: Clients) -> None:
    for about in ({"secret": "f" * 64}, {"key": "another"}):
        wrong = Library(int(urls[0].rpartition(":")[2]), **about)
        try:
            with pytest.raises(pusher.errors.PusherBadAuth):
                await wrong.call("trigger", "news", "a", "1")
            with pytest.raises((pusher.errors.PusherBadAuth, pusher.errors.PusherBadStatus)):
                await wrong.call("terminate_user_connections", "ann")
        finally:
            wrong.close()
    with pytest.raises(AssertionError, match="4009"):
        answer = {"auth": f"{API_KEY}:{'0' * 64}", "user_data": '{"id":"ann"}'}
        await clients[0].send("pusher:signin", answer)
        await clients[0].event("pusher:signin_success")


async def test_webhook_is_valid_for_the_library(library: Library) -> None:
    body = json.dumps({"time_ms": int(time.time() * 1000), "events": [{"name": "channel_occupied", "channel": "ü"}]})
    signature = sign(PusherApp(APP, API_KEY, API_SECRET), body)
    assert await library.call("validate_webhook", API_KEY, signature, body) == json.loads(body)
    assert await library.call("validate_webhook", API_KEY, signature, body + " ") is None
