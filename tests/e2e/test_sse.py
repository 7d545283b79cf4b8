"""Event streams through nginx over three nodes: faults, and the examples of the documentation in Chromium.

The page is of another origin than the balancer, so that the browser applies its rules for such pages.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import Browser
from redis.asyncio import Redis

from snorky.client.aio import Publisher
from snorky.client.tokens import Signer
from tests.support.processes.chromium import closing_pages
from tests.support.processes.fleet import SECRET, Fleet, running_fleet
from tests.support.processes.tools import ROOT, eventually, free_port
from tests.support.scenarios.pages import code_block

pytestmark = pytest.mark.needs("redis-server", "nginx")

DEADLINE_S = 60.0
CHANNEL = "kept:orders"
COUNT = 1_000
STREAMS = 30
ENV = {
    "SNORKY_AUTH__HMAC_SECRET": SECRET,
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(
        [
            {"match": "news", "history": 100, "allow_subscribe": "anyone"},
            {"match": "orders:{identity}", "history": 5000, "allow_subscribe": "owner"},
            {"match": "kept:*", "history": 5000, "allow_subscribe": "anyone"},
        ]
    ),
}


def http_url(fleet: Fleet) -> str:
    return fleet.url.replace("ws://", "http://").removesuffix("/ws")


class Listener:
    """A client that reconnects as EventSource does, also after HTTP errors, and records what it receives."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.numbers: list[int] = []
        self.gaps = self.opens = 0
        self._url = url
        self._http = http
        self._last_id = ""
        self.running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
            try:
                async with self._http.get(self._url, headers=headers) as response:
                    if response.status == 200:
                        self.opens += 1
                        await self._read(response)
            except (aiohttp.ClientError, ConnectionError):
                pass
            await asyncio.sleep(0.1)

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        event: dict[str, str] = {}
        while line := await response.content.readline():
            if not line.endswith(b"\n"):
                return  # cut in the middle of a line: EventSource ignores an event without an end
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                event[name] = value
                continue
            self._last_id = event.get("id", self._last_id)
            if event.get("event") == "gap":
                self.gaps += 1
            elif "data" in event and "event" not in event:
                self.numbers.append(json.loads(event["data"]))
            event = {}


@asynccontextmanager
async def listeners(fleet: Fleet) -> AsyncIterator[list[Listener]]:
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        found = [Listener(f"{http_url(fleet)}/sse?channel={CHANNEL}", http) for _ in range(STREAMS)]
        try:

            async def all_open() -> bool:
                return await fleet.metric("snorky_subscriptions") >= STREAMS

            await eventually(all_open, within_s=DEADLINE_S, what="all streams are open")
            yield found
        finally:
            for each in found:
                each.running.cancel()
            await asyncio.gather(*(each.running for each in found), return_exceptions=True)


@pytest.mark.parametrize("fault", ["kill", "drain", "pubsub"])
async def test_streams_lose_nothing_and_repeat_nothing(tmp_path: Path, fault: str) -> None:
    async with running_fleet(tmp_path, nodes=3, env=ENV) as fleet, listeners(fleet) as clients:
        async with Publisher(fleet.redis.url) as publisher, Redis.from_url(fleet.redis.url) as redis:
            for number in range(COUNT):
                if number in (200, 400):
                    await inject(fault, fleet, redis, 0 if number == 200 else 1)
                await publisher.publish(CHANNEL, number)
                await asyncio.sleep(0.002)

        async def all_there() -> bool:
            return all(len(each.numbers) >= COUNT for each in clients)

        await eventually(all_there, within_s=DEADLINE_S, what="all numbers have arrived")
        assert all(each.numbers == list(range(COUNT)) and not each.gaps for each in clients)
        opens = sum(each.opens for each in clients)
        assert (opens > STREAMS) == (fault != "pubsub"), "the fault had its effect"


async def inject(fault: str, fleet: Fleet, redis: Any, index: int) -> None:
    if fault == "kill":
        fleet.nodes[index].kill()
    elif fault == "drain":
        fleet.nodes[index].terminate()
    else:
        await redis.client_kill_filter(_type="pubsub")


# -- in a browser -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(block: str, fleet: Fleet, call: str, port: int) -> AsyncIterator[str]:
    """Serve a page with an example of the documentation, whose paths lead to the balancer. call: starts it."""
    script = block.replace('"/sse', f'"{http_url(fleet)}/sse').replace("`/sse", f"`{http_url(fleet)}/sse")
    assert script != block
    token = Signer(hmac_secret=SECRET).connection_token("ann")
    code = f"const token = {json.dumps(token)};\n{script}\n{call}"
    page = f'<!DOCTYPE html><link rel="icon" href="data:,"><script>{code}</script>'

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    app = web.Application()
    app.add_routes([web.get("/", serve)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


@pytest.mark.needs("chromium")
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("example", "channel", "call"),
    [("sse", "news", ""), ("ticket", "orders:ann", 'listen("orders:ann", (order) => console.log(order));')],
)
@pytest.mark.parametrize("fault", ["kill", "replace"])
async def test_example_recovers_in_a_browser(
    tmp_path: Path, chromium: Browser, example: str, channel: str, call: str, fault: str
) -> None:
    """kill: one of three nodes behind nginx. replace: the only node drains, and another starts on its port."""
    page_of_docs = ROOT / "docs" / "other-protocols.md"
    block = code_block(page_of_docs, f"js {example}", containing="new EventSource")
    port = free_port()
    env = {**ENV, "SNORKY_PUBLIC__ALLOWED_ORIGINS": json.dumps([f"http://127.0.0.1:{port}"])}
    seen: list[str] = []
    nodes = 3 if fault == "kill" else 1
    async with running_fleet(tmp_path, nodes=nodes, env=env) as fleet, served(block, fleet, call, port) as url:
        async with closing_pages(chromium), Publisher(fleet.redis.url) as publisher:
            page = await chromium.new_page()
            page.on("console", lambda line: seen.append(line.text) if line.type == "log" else None)
            await page.goto(url)

            async def is_open() -> bool:
                return await fleet.metric("snorky_subscriptions") == 1

            async def is_heard() -> bool:
                await publisher.publish(channel, "before")
                return "before" in seen

            await eventually(is_open, within_s=DEADLINE_S, what="the stream is open")
            await eventually(is_heard, within_s=DEADLINE_S, what="the page has a position")
            if fault == "replace":
                fleet.nodes[0].terminate()
            else:
                open_here = [node for node in fleet.nodes if await node.metric("snorky_subscriptions")]
                open_here[0].kill()
            for number in range(100):
                await publisher.publish(channel, number)
            if fault == "replace":
                await fleet.replace(0)

            def since() -> list[str]:
                return [text for text in seen if text != "before"]

            async def all_there() -> bool:
                return len(since()) >= 100

            await eventually(all_there, within_s=DEADLINE_S, what="all messages have arrived")
            await publisher.publish(channel, "last")

            async def is_last_there() -> bool:
                return seen[-1] == "last"

            await eventually(is_last_there, within_s=DEADLINE_S, what="the last one has arrived")
            assert since() == [*map(str, range(100)), "last"]
