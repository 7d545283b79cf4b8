"""Pusher's library for backends in Node, `pusher` of npm, unmodified: its requests to a node, and its signatures."""

import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from nacl.secret import SecretBox

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.http.protocols.pusher.signatures import sign
from tests.support.clients.js_process import JSProcess, running_js
from tests.support.clients.pusher import PusherClient, SubscriptionFailed, connected
from tests.support.clients.pusher_api import API_ENV, API_KEY, API_SECRET, APP
from tests.support.clients.pusher_js import FOLDER, needs_pusher_js
from tests.support.processes.nodes import NodeProcess, RedisProcess

pytestmark = [pytest.mark.needs("redis-server", "node"), needs_pusher_js]

ROOM = "presence-room;@a,b=c.d"
MASTER = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
ENV = API_ENV | {"SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService"}
NOTHING = {"status": 200, "text": "{}"}
USERS = ["ann@example.com", "a/b c", "ü;é", "50%", "~x"]


class Site:
    """A node, the library, and clients of the node. url: of the node."""

    def __init__(self, url: str, library: JSProcess, stack: AsyncExitStack) -> None:
        self.url, self.library, self._stack = url, library, stack

    async def client(self) -> PusherClient:
        """Open a client."""
        return await self._stack.enter_async_context(connected(self.url, API_KEY, API_SECRET))

    async def authorize(self, client: PusherClient, channel: str, data: Any = None) -> Any:
        """Subscribe a client as the library authorizes it; returns the data of the success."""
        answer = await self.library.call("authorizeChannel", socket=client.socket_id, channel=channel, data=data)
        await client.send("pusher:subscribe", {"channel": channel, **answer})
        return await client.subscribed(channel)

    async def authenticate(self, client: PusherClient, user: Any) -> Any:
        """Sign a client in as the library authenticates it; returns the data of the success."""
        answer = await self.library.call("authenticateUser", socket=client.socket_id, user=user)
        await client.send("pusher:signin", answer)
        return await client.data("pusher:signin_success")

    async def get(self, path: str, **params: str) -> Any:
        """Ask a question by the library; returns the decoded answer."""
        found = await self.library.call("get", path=path, params=params)
        assert found["status"] == 200
        return json.loads(found["text"])

    async def refused(self, name: str, **about: Any) -> int:
        """Call a method that must fail; returns the HTTP status."""
        with pytest.raises(AssertionError) as found:
            await self.library.call(name, **about)
        return int(self.library.of("result")[-1]["error"]) if found else 0


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with (
        RedisProcess.running(tmp_path) as redis,
        NodeProcess.running(ENV | {"SNORKY_REDIS_URL": redis.url}) as node,
        AsyncExitStack() as stack,
    ):
        where = {"host": "127.0.0.1", "port": node.public_port, "app": APP, "key": API_KEY, "secret": API_SECRET}
        library = await stack.enter_async_context(running_js(FOLDER, "server.js", **where, masterKey=MASTER))
        yield Site(f"http://127.0.0.1:{node.public_port}", library, stack)


async def test_events_and_their_answers(site: Site) -> None:
    one, other = await site.client(), await site.client()
    for client in (one, other):
        await client.subscribe("news")
        await site.authorize(client, "private-a")
    call = site.library.call
    assert await call("trigger", channels=["news", "private-a"], event="a", data={"ü": None}) == NOTHING
    for client in (one, other):
        for channel in ("news", "private-a"):
            assert json.loads((await client.event("a", channel))["data"]) == {"ü": None}
    params = {"socket_id": one.socket_id, "info": "subscription_count"}
    found = await call("trigger", channels="news", event="a", data="text", params=params)
    assert json.loads(found["text"]) == {"channels": {"news": {"subscription_count": 2}}}
    assert (await other.event("a"))["data"] == "text"
    batch = [{"channel": "news", "name": "b", "data": {"n": n}} for n in range(10)]
    assert await call("triggerBatch", batch=batch) == NOTHING
    for client in (one, other):
        assert [json.loads((await client.event("b"))["data"])["n"] for _ in range(10)] == list(range(10))
        assert await client.fence() == []
    assert await site.refused("triggerBatch", batch=[*batch, batch[0]]) == 400
    assert await site.refused("trigger", channels="news", event="a", data="x" * 65_537) == 413
    assert await site.refused("post", path="/nothing", body={}) == 404


async def test_event_of_an_encrypted_channel(site: Site) -> None:
    client, channel = await site.client(), "private-encrypted-a"
    await site.authorize(client, channel)
    assert await site.library.call("trigger", channels=channel, event="a", data={"n": 7}) == NOTHING
    data = json.loads((await client.event("a"))["data"])
    box = SecretBox(base64.b64decode(await site.library.call("sharedSecret", channel=channel)))
    assert json.loads(box.decrypt(base64.b64decode(data["ciphertext"]), base64.b64decode(data["nonce"]))) == {"n": 7}


async def test_questions_about_channels_and_users(site: Site) -> None:
    for user in ("ann", "bob"):
        member = {"user_id": user, "user_info": {"name": user.title()}}
        found = await site.authorize(await site.client(), ROOM, member)
        assert found["presence"]["hash"][user] == {"name": user.title()}
    await (await site.client()).subscribe("news")
    assert await site.get("/channels") == {"channels": {"news": {}, ROOM: {}}}
    params = {"filter_by_prefix": ROOM[:-1], "info": "user_count"}
    assert await site.get("/channels", **params) == {"channels": {ROOM: {"user_count": 2}}}
    found = await site.get(f"/channels/{ROOM}", info="user_count,subscription_count")
    assert found == {"occupied": True, "user_count": 2, "subscription_count": 2}
    assert await site.get("/channels/empty") == {"occupied": False}
    assert await site.get(f"/channels/{ROOM}/users") == {"users": [{"id": "ann"}, {"id": "bob"}]}
    assert await site.refused("get", path="/channels/news/users", params={}) == 400
    assert await site.refused("get", path="/channels", params={"info": "user_count"}) == 400


async def test_users_with_all_kinds_of_characters(site: Site) -> None:
    for user in USERS:
        client, other = await site.client(), await site.client()
        assert json.loads((await site.authenticate(client, {"id": user}))["user_data"]) == {"id": user}
        await site.authenticate(other, {"id": "somebody else"})
        await client.subscribe(f"#server-to-user-{user}")
        assert await site.library.call("sendToUser", user=user, event="hello", data={"n": 1}) == NOTHING
        assert (await client.event("hello"))["data"] == '{"n":1}'
        assert await site.library.call("terminate", user=user) == NOTHING
        assert (await client.ended())[0] == 4009
        await other.fence()
    assert await site.refused("sendToUser", user="ü" * 200, event="hello", data=1) == 400


async def test_signature_is_of_one_socket_and_one_channel(site: Site) -> None:
    one, other = await site.client(), await site.client()
    answer = await site.library.call("authorizeChannel", socket=one.socket_id, channel="private-a")
    for client, channel in ((other, "private-a"), (one, "private-b")):
        with pytest.raises(SubscriptionFailed, match="401"):
            await client.subscribe(channel, auth=answer["auth"])
    assert await one.subscribe("private-a", auth=answer["auth"]) == {}
    answer = await site.library.call("authenticateUser", socket=one.socket_id, user={"id": "ann"})
    await other.send("pusher:signin", answer)
    assert (await other.ended())[0] == 4009


async def test_webhook_is_valid_for_the_library(site: Site) -> None:
    events = [{"name": "channel_occupied", "channel": "ü"}]
    body = json.dumps({"time_ms": int(time.time() * 1000), "events": events})
    headers = {
        "content-type": "application/json",
        "x-pusher-key": API_KEY,
        "x-pusher-signature": sign(PusherApp(APP, API_KEY, API_SECRET), body),
    }
    assert await site.library.call("webhook", headers=headers, body=body) == {"isValid": True, "events": events}
    found = await site.library.call("webhook", headers=headers | {"x-pusher-signature": "0" * 64}, body=body)
    assert not found["isValid"]
