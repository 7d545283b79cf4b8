"""sockjs-client in Chromium, unmodified, by every transport it has there, through nginx round robin over three nodes.

The page is of another origin, which the nodes allow; where a transport is for pages of the same origin only, it is the
balancer's own. The iframe transports get sockjs-client from the page's server instead of the CDN.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser as ChromiumBrowser
from playwright.async_api import Page, Route

from tests.e2e.test_sockjs import NODES, House, asked, house
from tests.support.clients.sockjs_client import FOLDER, needs_sockjs_client
from tests.support.processes.balancer import Balancer
from tests.support.processes.chromium import closing_pages
from tests.support.processes.nodes import NodeProcess
from tests.support.processes.tools import eventually, free_port

OTHER_ORIGIN = (
    "websocket",
    "xhr-streaming",
    "eventsource",
    "iframe-eventsource",
    "iframe-htmlfile",
    "xhr-polling",
    "iframe-xhr-polling",
    "jsonp-polling",
)
SAME_ORIGIN = ("htmlfile", "xhr-streaming", "jsonp-polling")
DEADLINE_S = 20.0
SCRIPT = FOLDER / "node_modules" / "sockjs-client" / "dist" / "sockjs.min.js"

pytestmark = [
    pytest.mark.needs("chromium", "redis-server", "nginx"),
    needs_sockjs_client,
    pytest.mark.asyncio(loop_scope="module"),
]

PAGE = """<!DOCTYPE html><title>SockJS</title><body><script src="%s/sockjs.min.js"></script><script>
  function connect(url, transport) {
    window.socket = new SockJS(url, null, {transports: transport});
    socket.onopen = () => tell({event: 'open', transport: socket.transport});
    socket.onmessage = (message) => tell({event: 'message', data: message.data});
    socket.onclose = (close) => tell({event: 'close', code: close.code, reason: close.reason});
  }
</script>"""


@asynccontextmanager
async def pages(port: int) -> AsyncIterator[str]:
    """Serve the page and sockjs-client; returns their origin."""

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=PAGE % f"http://127.0.0.1:{port}", content_type="text/html")

    async def client(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(SCRIPT)

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/sockjs.min.js", client)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


class BrowserClient:
    """sockjs-client in a page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.faults: list[str] = []
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        page.on("console", lambda line: self.faults.append(line.text) if line.type == "error" else None)

    async def connect(self, url: str, transport: str) -> None:
        await self.page.evaluate("([url, transport]) => connect(url, transport)", [url, transport])
        assert await self.event() == {"event": "open", "transport": transport}

    async def start(self) -> None:
        await self.page.expose_function("tell", self._events.put_nowait)

    async def event(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._events.get()
        except TimeoutError:
            raise AssertionError(f"nothing within {DEADLINE_S} s; the browser says {self.faults}") from None

    async def message(self) -> Any:
        event = await self.event()
        assert event["event"] == "message", event
        return json.loads(event["data"])["message"]

    async def send(self, **message: Any) -> None:
        text = json.dumps({"service": "pubsub", "message": message})
        await self.page.evaluate("text => socket.send(text)", text)


@dataclass
class Browser:
    """Nodes, the page's server, and a Chromium. Each client has its own context, and so its own connections."""

    there: House
    origin: str
    chromium: ChromiumBrowser

    async def client(self, transport: str, *, is_same_origin: bool = False) -> BrowserClient:
        """Open the page and connect it."""
        page = await (await self.chromium.new_context()).new_page()
        client = BrowserClient(page)
        await client.start()
        if is_same_origin:
            origin_of_nodes = self.there.url.removesuffix("/sockjs")

            async def page_of_ours(route: Route) -> None:
                await route.fulfill(body=PAGE % origin_of_nodes, content_type="text/html")

            async def script_of_ours(route: Route) -> None:
                await route.fulfill(path=SCRIPT)

            await page.route(f"{origin_of_nodes}/page", page_of_ours)
            await page.route(f"{origin_of_nodes}/sockjs.min.js", script_of_ours)
            await page.goto(f"{origin_of_nodes}/page")
        else:
            await page.goto(self.origin)
        await client.connect(self.there.url, transport)
        return client


@asynccontextmanager
async def browser(
    directory: Path, chromium: ChromiumBrowser, *, is_same_origin: bool = False
) -> AsyncIterator[Browser]:
    """Run all of them until the block ends."""
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(pages(free_port()))
        settings = {
            "SNORKY_PUBLIC__ALLOWED_ORIGINS": json.dumps([] if is_same_origin else [origin]),
            "SNORKY_PUBLIC__SOCKJS_CLIENT_URL": f"{origin}/sockjs.min.js",
        }
        there = await stack.enter_async_context(house(directory, NODES, settings))
        await stack.enter_async_context(closing_pages(chromium))
        yield Browser(there, origin, chromium)


@pytest.mark.parametrize("is_same_origin", [False, True], ids=["of another origin", "of the same origin"])
async def test_the_real_client_talks_in_a_browser_by_every_transport(
    is_same_origin: bool, tmp_path: Path, chromium: ChromiumBrowser
) -> None:
    async with browser(tmp_path, chromium, is_same_origin=is_same_origin) as running:
        there, clients, owners = running.there, dict[str, BrowserClient](), dict[str, NodeProcess]()
        for transport in SAME_ORIGIN if is_same_origin else OTHER_ORIGIN:
            assert there.balancer is not None
            before, seen = [await node.metric("snorky_connections") for node in there.nodes], there.balancer.process.log
            client = clients[transport] = await running.client(transport, is_same_origin=is_same_origin)
            after = [await node.metric("snorky_connections") for node in there.nodes]
            news = zip(there.nodes, before, after, strict=True)
            (owners[transport],) = [node for node, old, new in news if new > old]
            await talk(there, client, transport)
            if transport != "websocket":
                for number in range(NODES):  # one request each, while the answer to the one before is awaited
                    await client.send(command="publish", params={"channel": "other", "message": 1}, callId=number)
                    while (await client.message()).get("callId") != number:
                        pass
                await eventually(partial(has_asked_all, there.balancer, len(seen)), within_s=30, what=transport)
        for node in there.nodes:
            node.terminate()
            for transport in [name for name, owner in owners.items() if owner is node]:
                while (message := await clients[transport].message())["type"] != "moving":
                    assert message["type"] == "response"  # to the publishes
                closed = await clients[transport].event()
                assert closed == {"event": "close", "code": 1001, "reason": "Going away"}, transport
            assert await node.wait(10) == 0


async def has_asked_all(balancer: Balancer, since: int) -> bool:
    """Return whether all nodes got requests; the balancer logs them when it has forwarded the answer."""
    return len(asked(balancer, since=since)) == NODES


async def talk(there: House, client: BrowserClient, channel: str) -> None:
    """Receive a backend's publication, and the client's own."""
    await client.send(command="subscribe", params={"channel": channel}, callId=1)
    assert await client.message() == {"type": "response", "callId": 1, "data": None}
    values = [0, "é\u2028\u200d\u0000😀", {"a": ["</script><!--", "%41", '"']}, "x" * 30_000, *range(20)]
    await there.publish(*values, channel=channel)
    assert [(await client.message())["message"] for _ in values] == values
    for number in range(10):
        await client.send(command="publish", params={"channel": channel, "message": f"é😀{number}"})
    echoes = []
    while len(echoes) < 10:
        message = await client.message()
        if message["type"] == "message":
            echoes.append(message["message"])
    assert echoes == [f"é😀{number}" for number in range(10)]


async def test_a_stream_in_a_browser_notices_that_its_node_is_killed(tmp_path: Path, chromium: ChromiumBrowser) -> None:
    async with browser(tmp_path, chromium) as running:
        client = await running.client("xhr-streaming")
        (owner,) = [node for node in running.there.nodes if await node.metric("snorky_connections")]
        owner.kill()
        closed = await client.event()
        assert (closed["event"], closed["code"]) == ("close", 1006)
