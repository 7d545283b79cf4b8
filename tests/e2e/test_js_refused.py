"""clients/js in a browser that a real node refuses: the page learns why, though its WebSocket does not report it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page

from tests.support.clients.js_crowd import JS
from tests.support.processes.chromium import closing_pages
from tests.support.processes.fleet import running_fleet

pytestmark = [pytest.mark.needs("chromium", "redis-server", "nginx"), pytest.mark.asyncio(loop_scope="module")]

END = """async (url) => {
    const { connect } = await import("/client/snorky.js");
    const client = connect(url, { backoffBaseMs: 100 });
    const closed = new Promise((resolve) => client.on("close", resolve));
    const error = await client.subscribe("news", () => {}).ready.catch((error) => error);
    const { code, status, willReconnect } = await closed;
    return { error: [error.code, error.status, error.message], close: [code, status ?? null, willReconnect] };
}"""
TRIES = """async (url) => {
    const { connect } = await import("/client/snorky.js");
    const client = connect(url, { backoffBaseMs: 10, backoffMaxMs: 20 });
    const { attempt, status } = await new Promise((resolve) => {
        client.on("reconnecting", (event) => event.attempt === 5 && resolve(event));
        client.on("close", resolve);
    });
    client.close();
    return [attempt, status ?? null];
}"""


@asynccontextmanager
async def serving_pages() -> AsyncIterator[str]:
    """Serve the client and an empty page, on an origin of its own. It allows no other origin (CORS)."""

    async def empty(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html>", content_type="text/html")

    app = web.Application()
    app.add_routes([web.get("/", empty), web.static("/client", JS / "src")])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module")
async def stage(tmp_path: Path, chromium: Browser) -> AsyncIterator[tuple[Page, str, str]]:
    """A page, the node that refuses it, and the page's origin."""
    async with running_fleet(tmp_path, nodes=1) as fleet, serving_pages() as origin, closing_pages(chromium):
        page = await chromium.new_page()
        await page.goto(f"http://{origin}/")
        yield page, f"127.0.0.1:{fleet.nodes[0].public_port}", origin


async def test_page_gets_the_reason_of_a_refusal_that_a_retry_cannot_change(stage: tuple[Page, str, str]) -> None:
    page, node, origin = stage
    for url, status, text in [
        (f"ws://{node}/ws", 403, "allowed_origins"),
        (f"ws://{node}/wrong", 404, "no WebSocket endpoint"),
        (f"ws://{origin}/wrong", 404, "no WebSocket endpoint"),
    ]:
        told: dict[str, Any] = await page.evaluate(END, url)
        assert told["close"] == [1006, status, False]
        assert told["error"][:2] == ["closed", status]
        assert text in told["error"][2]


async def test_page_that_cannot_read_the_answer_keeps_trying(stage: tuple[Page, str, str]) -> None:
    page, _, origin = stage
    elsewhere = origin.replace("127.0.0.1", "localhost")  # another origin, whose answers the page cannot read
    assert await page.evaluate(TRIES, f"ws://{elsewhere}/wrong") == [5, None]
