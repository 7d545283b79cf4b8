"""Chromium for tests in a browser: starting one costs more than a second of CPU, so the tests of a file share one.

@pytest.mark.asyncio(loop_scope="module")
async def test_page_shows_text(chromium: Browser) -> None:
    async with closing_pages(chromium):
        page = await chromium.new_page()

Pages of different contexts share no cookies, storage, cache or connections: each test opens its own contexts, which end
with the test. `Browser.new_page` opens one.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from playwright.async_api import Browser, async_playwright

from tests.support.processes.tools import program

__all__ = ["closing_pages", "running_chromium"]

# Chromium as root in a container, and without its own background requests
ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@asynccontextmanager
async def running_chromium() -> AsyncIterator[Browser]:
    """Run one until the block ends."""
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=program("chromium"), args=ARGUMENTS)
        try:
            yield opened
        finally:
            await opened.close()


@asynccontextmanager
async def closing_pages(chromium: Browser) -> AsyncIterator[Browser]:
    """Close all contexts, with their pages, at the end of the block."""
    assert not chromium.contexts, "an earlier test has left pages"
    try:
        yield chromium
    finally:
        for context in chromium.contexts:
            await context.close()
