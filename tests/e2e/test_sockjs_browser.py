"""sockjs-client in Chromium, unmodified, by every transport it has there, through nginx round robin over three nodes.

The page is another origin's, which the nodes allow; where a transport is for pages of the same origin only, it is the
balancer's own. The iframe transports get sockjs-client from the page's server instead of the CDN.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Page, Route, async_playwright

from tests.e2e.test_demo import ARGUMENTS
from tests.e2e.test_sockjs import NODES, asked, house
from tests.support.sockjs_client import FOLDER, needs_sockjs_client
from tests.support.tools import free_port, program

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

pytestmark = [pytest.mark.needs("chromium", "redis-server", "nginx"), needs_sockjs_client]

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
    """Serve the page and sockjs-client; gives their origin."""

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


@pytest.mark.parametrize(
    ("transport", "is_same_origin"),
    [pytest.param(each, False, id=f"{each} of another origin") for each in OTHER_ORIGIN]
    + [pytest.param(each, True, id=f"{each} of the same origin") for each in SAME_ORIGIN],
)
async def test_the_real_client_talks_in_a_browser(transport: str, is_same_origin: bool, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        port = free_port()
        origin = await stack.enter_async_context(pages(port))
        settings = {
            "SNORKY_PUBLIC__ALLOWED_ORIGINS": json.dumps([] if is_same_origin else [origin]),
            "SNORKY_PUBLIC__SOCKJS_CLIENT_URL": f"{origin}/sockjs.min.js",
        }
        there = await stack.enter_async_context(house(tmp_path, NODES, settings))
        playwright = await stack.enter_async_context(async_playwright())
        chromium = await playwright.chromium.launch(executable_path=program("chromium"), args=ARGUMENTS)
        stack.push_async_callback(chromium.close)
        page = await chromium.new_page()
        client = BrowserClient(page)
        await client.start()
        if is_same_origin:
            origin_of_nodes = there.url.removesuffix("/sockjs")

            async def page_of_ours(route: Route) -> None:
                await route.fulfill(body=PAGE % origin_of_nodes, content_type="text/html")

            async def script_of_ours(route: Route) -> None:
                await route.fulfill(path=SCRIPT)

            await page.route(f"{origin_of_nodes}/page", page_of_ours)
            await page.route(f"{origin_of_nodes}/sockjs.min.js", script_of_ours)
            await page.goto(f"{origin_of_nodes}/page")
        else:
            await page.goto(origin)

        await client.connect(there.url, transport)
        await client.send(command="subscribe", params={"channel": "news"}, callId=1)
        assert await client.message() == {"type": "response", "callId": 1, "data": None}
        values = [0, "é\u2028\u200d\u0000😀", {"a": ["</script><!--", "%41", '"']}, "x" * 30_000, *range(20)]
        await there.publish(*values)
        assert [(await client.message())["message"] for _ in values] == values
        for number in range(10):
            await client.send(command="publish", params={"channel": "news", "message": f"é😀{number}"})
        echoes = []
        while len(echoes) < 10:
            message = await client.message()
            if message["type"] == "message":
                echoes.append(message["message"])
        assert echoes == [f"é😀{number}" for number in range(10)]
        if transport != "websocket":
            assert there.balancer is not None
            assert len(asked(there.balancer)) == NODES
        (owner,) = [node for node in there.nodes if await node.metric("snorky_connections")]
        owner.terminate()
        while (message := await client.message())["type"] != "moving":
            assert message["type"] == "response"  # to the publishes
        assert await client.event() == {"event": "close", "code": 1001, "reason": "Going away"}
