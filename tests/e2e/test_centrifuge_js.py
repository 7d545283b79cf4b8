"""centrifuge-js of npm, in Node and in Chromium, through nginx over three nodes: faults, tokens, presence, history."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from playwright.async_api import Browser
from redis.asyncio import Redis

from snorky.client.aio import Publisher
from tests.support.clients.centrifuge_js import FOLDER, centrifuge_js, needs_centrifuge_js
from tests.support.processes.chromium import closing_pages
from tests.support.processes.fleet import SECRET, Fleet, running_fleet
from tests.support.processes.tools import eventually, free_port

pytestmark = [pytest.mark.needs("redis-server", "nginx", "node"), needs_centrifuge_js]

DEADLINE_S = 60.0
CHANNEL = "kept:orders"
COUNT = 1_000
CLIENTS = 20
ENV = {
    "SNORKY_AUTH__HMAC_SECRET": SECRET,
    "SNORKY_AUTH__LEEWAY_S": "1",
    "SNORKY_SERVICES__CHAT__UNMATCHED": "open",
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(
        [
            {"match": "by-token:*", "history": 100, "presence": True, "join_leave": True, "allow_subscribe": "token"},
            {"match": "kept:*", "history": 5000, "allow_subscribe": "anyone", "allow_publish": "anyone"},
        ]
    ),
}


def url_of(fleet: Fleet) -> str:
    return fleet.url.removesuffix("/ws") + "/connection/websocket"


def token(identity: str, *, for_s: float = 600, **claims: Any) -> str:
    return jwt.encode({"sub": identity, "exp": time.time() + for_s, **claims}, SECRET, algorithm="HS256")


async def inject(fault: str, fleet: Fleet, redis: Any, index: int) -> None:
    if fault == "kill":
        fleet.nodes[index].kill()
    elif fault == "drain":
        fleet.nodes[index].terminate()
    else:
        await redis.client_kill_filter(_type="pubsub")


async def publish_with_faults(fault: str, fleet: Fleet, channel: str) -> None:
    """Publish COUNT numbers, and inject the fault twice."""
    async with Publisher(fleet.redis.url) as publisher, Redis.from_url(fleet.redis.url) as redis:
        for number in range(COUNT):
            if number in (200, 400):
                await inject(fault, fleet, redis, 0 if number == 200 else 1)
            await publisher.publish(channel, number)
            await asyncio.sleep(0.002)


WAYS = (
    ("websocket", "json"),
    ("websocket", "protobuf"),
    ("http_stream", "json"),
    ("http_stream", "protobuf"),
    ("sse", "json"),
)


@pytest.mark.parametrize("fault", ["kill", "drain", "pubsub"])
async def test_clients_lose_nothing_and_repeat_nothing(tmp_path: Path, fault: str) -> None:
    """Clients of all transports at once, because the nodes take longer to start than the numbers to arrive."""
    async with running_fleet(tmp_path, nodes=3, env=ENV) as fleet, AsyncExitStack() as stack:
        crowds = {}
        for transport, form in WAYS:
            about = {"count": CLIENTS, "form": form, "transport": transport, "channel": CHANNEL}
            crowds[transport, form] = await stack.enter_async_context(centrifuge_js(url_of(fleet), **about))
        for clients in crowds.values():
            await clients.until("subscribed", CLIENTS)
        await publish_with_faults(fault, fleet, CHANNEL)
        for way, clients in crowds.items():
            await clients.until("pub", CLIENTS * COUNT)
            for number in range(CLIENTS):
                assert [each["data"] for each in clients.of("pub", number)] == list(range(COUNT)), way
            again = clients.of("subscribed")[CLIENTS:]
            assert all(each["recovered"] for each in again) and not clients.of("unsubscribed"), way
            assert bool(again) == (fault != "pubsub"), f"the fault had its effect on {way}"


@pytest.mark.parametrize("fault", ["kill", "drain"])
async def test_subscriptions_by_the_server_recover(tmp_path: Path, fault: str) -> None:
    tokens = [token("ann", channels=["by-token:ann"])]
    async with running_fleet(tmp_path, nodes=3, env=ENV | {"SNORKY_PUBLIC__DRAIN_GRACE_S": "1"}) as fleet:
        async with centrifuge_js(url_of(fleet), count=6, connectionTokens=tokens) as clients:
            await clients.until("server subscribed", 6)
            async with Publisher(fleet.redis.url) as publisher:
                for number in range(90):
                    if number == 30:
                        await inject(fault, fleet, None, 0)
                    await publisher.publish("by-token:ann", number)
                    await asyncio.sleep(0.01)
            await clients.until("server pub", 6 * 90)
            for number in range(6):
                assert [each["data"] for each in clients.of("server pub", number)] == list(range(90))
            await clients.until("server subscribed", 7)  # the fault had its effect
            again = clients.of("server subscribed")[6:]
            assert all(each["recovered"] for each in again)


@pytest.mark.parametrize("form", ["json", "protobuf"])
async def test_tokens_are_replaced_before_they_expire(tmp_path: Path, form: str) -> None:
    channel = "by-token:a"
    async with running_fleet(tmp_path, nodes=1, env=ENV) as fleet:
        connection = [token("ann", for_s=-60), *(token("ann", for_s=seconds) for seconds in (3, 600))]
        subscription = [token("ann", channel=channel, for_s=seconds) for seconds in (-60, 3, 600)]
        asked: dict[str, Any] = {"connectionTokens": connection, "channelTokens": subscription}
        async with centrifuge_js(url_of(fleet), form=form, channel=channel, **asked) as clients:
            await clients.until("connection token", 3)
            await clients.until("channel token", 3)
            await asyncio.sleep(2)
            assert len(clients.of("connected")) == len(clients.of("subscribed")) == 1
            assert not clients.of("disconnected") and not clients.of("unsubscribed")


async def test_client_without_a_right_to_a_channel_is_told_so(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=1, env=ENV) as fleet:
        async with centrifuge_js(url_of(fleet), channel="by-token:a") as clients:
            assert (await clients.until("unsubscribed"))[0]["code"] == 103
        async with centrifuge_js(url_of(fleet), connectionTokens=["nonsense"]) as clients:
            assert (await clients.until("disconnected"))[0]["code"] == 3500


async def test_presence_history_and_calls(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, nodes=3, env=ENV) as fleet:
        for number, (transport, form) in enumerate(WAYS):
            await has_presence_history_and_calls(fleet, f"by-token:room{number}", transport, form)


async def has_presence_history_and_calls(fleet: Fleet, channel: str, transport: str, form: str) -> None:
    claims: dict[str, Any] = {"ops": ["subscribe", "publish", "history", "presence"], "info": {"role": "admin"}}
    tokens = {
        "connectionTokens": [token("ann", info={"name": "Ann €"})],
        "channelTokens": [token("ann", channel=channel, **claims)],
    }
    about = {"count": 3, "form": form, "transport": transport, "channel": channel}
    async with centrifuge_js(url_of(fleet), **about, **tokens) as clients:
        await clients.until("subscribed", 3)
        await clients.until("join", 3)
        for number in range(3):
            await clients.call("publish", data={"number": number})
        await clients.until("pub", 9)
        page = await clients.call("history", limit=2)
        assert [each["data"]["number"] for each in page["publications"]] == [0, 1]
        page = await clients.call("history", limit=2, reverse=True)
        assert [each["data"]["number"] for each in page["publications"]] == [2, 1]
        present = (await clients.call("presence"))["clients"]
        assert present.keys() == {each["id"] for each in clients.of("connected")}
        assert {each["user"] for each in present.values()} == {"ann"}
        own = clients.of("connected", 0)[0]["id"]
        publisher = {"user": "ann", "client": own, "connInfo": {"name": "Ann €"}, "chanInfo": {"role": "admin"}}
        assert publisher.items() <= present[own].items()
        assert [each["info"] for each in clients.of("pub")] == [publisher] * 9
        assert [each["info"] for each in page["publications"]] == [publisher] * 2
        assert publisher in [each["info"] for each in clients.of("join")]
        assert await clients.call("presenceStats") == {"numClients": 3, "numUsers": 1}
        found = await clients.call("rpc", method="chat.join", data={"channel": "lobby"})
        assert found["data"]["members"] == ["ann"]
        await clients.call("unsubscribe")
        left = (await clients.until("leave", 2))[0]["info"]
        assert left["client"] == clients.of("connected", 0)[0]["id"]


# -- in a browser -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(script: str, port: int) -> AsyncIterator[str]:
    """Serve a page with centrifuge-js and a script."""

    async def page(_request: web.Request) -> web.Response:
        text = f'<!DOCTYPE html><link rel="icon" href="data:,"><script src="/c.js"></script><script>{script}</script>'
        return web.Response(text=text, content_type="text/html")

    async def library(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(FOLDER / "node_modules/centrifuge/dist/centrifuge.js")

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/c.js", library)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


@pytest.mark.needs("chromium")
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("transport", ["websocket", "http_stream", "sse"])
async def test_page_recovers_in_a_browser(tmp_path: Path, chromium: Browser, transport: str) -> None:
    port, seen = free_port(), list[str]()
    env = ENV | {"SNORKY_PUBLIC__ALLOWED_ORIGINS": json.dumps([f"http://127.0.0.1:{port}"])}
    async with running_fleet(tmp_path, nodes=3, env=env) as fleet:
        script = f"""
            const base = "{fleet.url.removeprefix("ws").removesuffix("/ws")}", transport = "{transport}";
            const endpoint = (transport === "websocket" ? "ws" : "http") + base + "/connection/" + transport;
            const centrifuge = new Centrifuge([{{ transport, endpoint }}], {{
                emulationEndpoint: "http" + base + "/emulation", minReconnectDelay: 50, maxReconnectDelay: 500 }});
            const subscription = centrifuge.newSubscription("{CHANNEL}");
            subscription.on("publication", (context) => console.log(context.data));
            subscription.on("subscribed", () => console.log("subscribed"));
            subscription.subscribe();
            centrifuge.connect();
        """
        async with (
            served(script, port) as url,
            closing_pages(chromium),
            Publisher(fleet.redis.url) as publisher,
        ):
            page = await chromium.new_page()
            page.on("console", lambda line: seen.append(line.text) if line.type == "log" else None)
            await page.goto(url)

            async def are_there(count: int) -> bool:
                return len(seen) >= count

            await eventually(lambda: are_there(1), within_s=DEADLINE_S, what="the page is subscribed")
            (node,) = [each for each in fleet.nodes if await each.metric("snorky_subscriptions")]
            for number in range(100):
                if number == 30:
                    node.kill()
                await publisher.publish(CHANNEL, number)
            await eventually(lambda: are_there(102), within_s=DEADLINE_S, what="all messages have arrived")
            assert [text for text in seen if text != "subscribed"] == list(map(str, range(100)))
