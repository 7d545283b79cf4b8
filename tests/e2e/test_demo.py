"""The first run: `make demo` serves a page, and real browsers exchange messages through it."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.support.processes.chromium import closing_pages
from tests.support.processes.nodes import NodeProcess

pytestmark = [pytest.mark.needs("chromium", "make"), pytest.mark.asyncio(loop_scope="module")]

INSTALL_S = 300.0  # on a fresh clone `make demo` makes .venv first
JOINED_WITHIN_MS = 30_000


@asynccontextmanager
async def demo() -> AsyncIterator[NodeProcess]:
    """Run `make demo` as a new user does, but on free ports."""
    node = NodeProcess({"SNORKY_PUBLIC__DRAIN_GRACE_S": "1"}, argv=("make", "--no-print-directory", "demo"))
    try:
        ready = await node.wait_ready(INSTALL_S)
        print(ready[0])
        yield node
    finally:
        node.terminate()  # make forwards the signal to the node, and waits for its end
        assert await node.wait() != 0  # make prints "Terminated"
        await node.close()


async def open_page(chromium: Browser, url: str, faults: list[str]) -> Page:
    """Open the demo page; errors of the browser go into `faults`."""
    page = await chromium.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type in ("error", "warning") else None)
    await page.goto(url)
    for name in ("pane-a", "pane-b"):
        await joined(page.get_by_test_id(name))
    return page


async def joined(pane: Locator, encoding: str = "json") -> None:
    """Wait until a pane is subscribed: a message that is published earlier does not reach it."""
    await expect(pane.get_by_test_id("log")).to_contain_text(f"speaking {encoding}", timeout=JOINED_WITHIN_MS)


async def test_message_of_one_page_appears_in_the_other(chromium: Browser) -> None:
    faults: list[str] = []
    async with demo() as node, closing_pages(chromium):
        url = f"http://127.0.0.1:{node.public_port}/"
        first, second = await open_page(chromium, url, faults), await open_page(chromium, url, faults)
        pane = first.get_by_test_id("pane-a")
        await pane.get_by_test_id("message").fill("Hello from the first page")
        await pane.get_by_test_id("send").click()
        for page in (first, second):
            for name in ("pane-a", "pane-b"):
                entry = page.get_by_test_id(name).get_by_test_id("entry").last
                await expect(entry).to_contain_text("Hello from the first page")
        # the panes show their node and the latency
        await expect(pane.get_by_test_id("node")).to_contain_text(re.compile(r"n[0-9a-f]{12}"))
        await expect(pane.get_by_test_id("latency")).to_contain_text("ms")
        assert faults == []


async def test_panes_of_both_encodings_receive_backend_publications(chromium: Browser) -> None:
    faults: list[str] = []
    async with demo() as node, closing_pages(chromium):
        page = await open_page(chromium, f"http://127.0.0.1:{node.public_port}/", faults)
        pane = page.get_by_test_id("pane-b")
        await pane.get_by_test_id("encoding-msgpack").check()
        await expect(pane.get_by_test_id("encoding")).to_have_text("msgpack")
        await expect(pane.get_by_test_id("status")).to_have_attribute("data-state", "open")
        await joined(pane, "msgpack")
        body = {"command": "publish", "params": {"channel": "demo", "message": {"grüße": "aus dem Backend"}}}
        async with aiohttp.ClientSession() as session:
            envelope = {"service": "pubsub_backend", "message": body}
            async with session.post(f"http://127.0.0.1:{node.private_port}/backend", json=envelope) as response:
                assert response.status == 200
        for name in ("pane-a", "pane-b"):
            await expect(page.get_by_test_id(name).get_by_test_id("entry").last).to_contain_text("grüße")
        assert faults == []
