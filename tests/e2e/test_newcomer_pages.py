"""Existing pages and backends, written for hosted Pusher and for Centrifugo, moved to Snorky as the documents say.

Each is changed by exactly the lines of the `diff` blocks in docs/migrate-from-*.md, and then used in Chromium. Only
addresses differ: a node of a test has no TLS and a free port. The pages' libraries come from npm instead of a CDN.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from difflib import ndiff
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.support.clients.centrifuge_js import FOLDER as CENTRIFUGE_JS
from tests.support.clients.centrifuge_js import needs_centrifuge_js
from tests.support.clients.pusher_js import SCRIPT, needs_pusher_js
from tests.support.processes.chromium import closing_pages
from tests.support.processes.nodes import GATEWAY, NodeProcess, Process, RedisProcess
from tests.support.processes.tools import ROOT, free_port
from tests.support.scenarios.documented_changes import apply_change, changed_lines, replaced
from tests.support.scenarios.pages import code_block

pytestmark = [pytest.mark.needs("chromium", "redis-server"), pytest.mark.asyncio(loop_scope="module")]

NEWCOMER = ROOT / "tests" / "newcomer"
PUSHER_PAGE = ROOT / "docs" / "migrate-from-pusher.md"
CENTRIFUGO_PAGE = ROOT / "docs" / "migrate-from-centrifugo.md"
ECHO = ROOT / "tests" / "pusher_js" / "node_modules" / "laravel-echo" / "dist" / "echo.iife.js"
SECRET = "7e5a91d2c4b8f036" * 3
API_KEY = "0f1e2d3c4b5a6978" * 3
SHOWN_MS = 30_000
ECHO_LISTENS = """() => new Promise((resolve) => {
  const listener = ({ text }) => { document.getElementById("typing").textContent = `Echo: ${text}`; };
  Echo.channel("news").subscribed(resolve).listen(".announcement", listener);
})"""


@dataclass(frozen=True)
class Chat:
    """An existing application. library: the pages' script, as they name it and where it is here."""

    folder: Path
    document: Path
    page_change: str
    backend_change: str
    library: tuple[str, Path]

    def move(self, target: Path) -> None:
        """Write its files to a folder, changed as the document says. Nothing but the documented lines may differ."""
        for name, change in (("page.html", self.page_change), ("backend.py", self.backend_change)):
            old, (before, after) = (self.folder / name).read_text(), changed_lines(self.document, change)
            new = apply_change(old, before, after)
            differing = [line for line in ndiff(old.splitlines(), new.splitlines()) if line[0] in "+-"]
            expected = [line for line in ndiff(before, after) if line[0] in "+-"]
            assert differing == expected and differing
            (target / name).write_text(new)


PUSHER = Chat(
    NEWCOMER / "pusher_chat",
    PUSHER_PAGE,
    "pusher-js",
    "pusher-python",
    ("https://js.pusher.com/8.4.0/pusher.min.js", SCRIPT),
)
CENTRIFUGO = Chat(
    NEWCOMER / "centrifuge_chat",
    CENTRIFUGO_PAGE,
    "centrifuge-js",
    "cent",
    (
        "https://unpkg.com/centrifuge@5.7.1/dist/centrifuge.js",
        CENTRIFUGE_JS / "node_modules/centrifuge/dist/centrifuge.js",
    ),
)


@dataclass
class Site:
    """A chat that runs: its backend, a node, and Chromium."""

    chat: Chat
    origin: str
    chromium: Browser
    node: NodeProcess
    redis_url: str
    faults: list[str]
    has_websockets: bool = True

    async def open(self, path: str) -> Page:
        """Open a page in a browser context of its own; errors go into `faults`."""
        page = await (await self.chromium.new_context()).new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda line: self.faults.append(line.text) if line.type == "error" else None)
        url, script = self.chat.library

        async def library(route: Route) -> None:
            await route.fulfill(path=script)

        if not self.has_websockets:
            await page.add_init_script("delete window.WebSocket;")
        await page.route(url, library)
        await page.goto(f"{self.origin}{path}")
        return page

    async def post(self, path: str, text: str) -> None:
        """Let the backend publish a message."""
        async with aiohttp.ClientSession() as http, http.post(f"{self.origin}{path}", data=text) as response:
            assert response.status == 204, await response.text()


@asynccontextmanager
async def running(
    chromium: Browser, chat: Chat, folder: Path, config: str, env: Mapping[str, str]
) -> AsyncIterator[Site]:
    """Move a chat, and run it until the block ends. config: the document's. env: of node and backend."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(folder))
        port = free_port()
        origin = f"http://127.0.0.1:{port}"
        (folder / "snorky.toml").write_text(config.replace("https://app.example.org", origin))
        argv = (*GATEWAY, "serve", "--config", str(folder / "snorky.toml"))
        node = await stack.enter_async_context(NodeProcess.running({"SNORKY_REDIS_URL": redis.url}, argv=argv))
        await asyncio.to_thread(chat.move, folder)
        localize(chat, folder, node)
        backend = Process([sys.executable, "backend.py", str(port)], env=env, cwd=folder, ready="Running on")
        stack.push_async_callback(backend.close)
        await backend.wait_ready()
        await stack.enter_async_context(closing_pages(chromium))
        site = Site(chat, origin, chromium, node, redis.url, [])
        try:
            yield site
        finally:
            print(backend.log, node.log, site.faults)


def localize(chat: Chat, folder: Path, node: NodeProcess) -> None:
    """Replace the addresses in the moved files."""
    page, backend = folder / "page.html", folder / "backend.py"
    public, private = str(node.public_port), str(node.private_port)
    if chat is PUSHER:
        page.write_text(local_options(page.read_text(), public))
        addresses = {"rt.example.org": "127.0.0.1", "port=443": f"port={public}", "ssl=True": "ssl=False"}
        backend.write_text(replaced(backend.read_text(), **addresses))
    else:
        page.write_text(replaced(page.read_text(), **{"wss://rt.example.org": f"ws://127.0.0.1:{public}"}))
        backend.write_text(replaced(backend.read_text(), **{"http://snorky:8003": f"http://127.0.0.1:{private}"}))


def local_options(text: str, port: str) -> str:
    """Replace the addresses in options of pusher-js."""
    addresses = {"rt.example.org": "127.0.0.1", "wsPort: 80": f"wsPort: {port}", "forceTLS: true": "forceTLS: false"}
    return replaced(text, **addresses)


async def shows(page: Page, what: str, *texts: str) -> None:
    """Wait until a list of the page has exactly these texts, in this order."""
    await expect(page.locator(f"#{what} li")).to_have_text(list(texts), timeout=SHOWN_MS)


def pusher_config() -> str:
    config = code_block(PUSHER_PAGE, "toml pusher", containing="[services.pubsub]")
    return replaced(config, **{"made by: openssl rand -hex 32": SECRET})


@needs_pusher_js
async def test_chat_of_hosted_pusher_works_with_the_documented_changes(tmp_path: Path, chromium: Browser) -> None:
    async with running(chromium, PUSHER, tmp_path, pusher_config(), {"PUSHER_SECRET": SECRET}) as site:
        ann = await site.open("/?user=ann")
        await expect(ann.locator("#state")).to_have_text("connected", timeout=SHOWN_MS)
        await shows(ann, "members", "Ann")
        bob = await site.open("/?user=bob")
        await shows(bob, "members", "Ann", "Bob")
        await shows(ann, "members", "Ann", "Bob")
        await bob.locator("#text").press_sequentially("Hi")
        await expect(ann.locator("#typing")).to_have_text("Bob is typing", timeout=SHOWN_MS)
        await bob.get_by_role("button").click()
        await shows(ann, "messages", "Bob: Hi")
        await ann.locator("#text").fill("Hello")
        await ann.get_by_role("button").click()
        await shows(bob, "messages", "me: Hi", "Ann: Hello")
        await site.post("/announcements", "Lunch is ready")
        for page in (ann, bob):
            await expect(page.locator("#news")).to_have_text("Lunch is ready", timeout=SHOWN_MS)
        await bob.close()
        await shows(ann, "members", "Ann")
        await shows(ann, "messages", "Bob: Hi", "me: Hello")
        assert site.faults == []


@needs_pusher_js
async def test_page_of_hosted_pusher_comes_back_when_its_node_was_restarted(tmp_path: Path, chromium: Browser) -> None:
    async with running(chromium, PUSHER, tmp_path, pusher_config(), {"PUSHER_SECRET": SECRET}) as site:
        ann = await site.open("/?user=ann")
        await shows(ann, "members", "Ann")
        ports = {
            "SNORKY_PUBLIC__PORT": str(site.node.public_port),
            "SNORKY_PRIVATE__PORT": str(site.node.private_port),
            "SNORKY_REDIS_URL": site.redis_url,
        }
        site.node.kill()
        await site.node.wait()
        await expect(ann.locator("#state")).not_to_have_text("connected", timeout=SHOWN_MS)
        async with NodeProcess.running(ports, argv=site.node.argv):
            await expect(ann.locator("#state")).to_have_text("connected", timeout=SHOWN_MS)
            bob = await site.open("/?user=bob")
            await shows(bob, "members", "Ann", "Bob")
            await site.post("/announcements", "Back again")
            await expect(ann.locator("#news")).to_have_text("Back again", timeout=SHOWN_MS)


@needs_pusher_js
async def test_page_of_hosted_pusher_works_without_websockets(tmp_path: Path, chromium: Browser) -> None:
    async with running(chromium, PUSHER, tmp_path, pusher_config(), {"PUSHER_SECRET": SECRET}) as site:
        site.has_websockets = False
        page, port = tmp_path / "page.html", str(site.node.public_port)
        options = code_block(PUSHER_PAGE, "js pusher-js", containing="httpHost")
        ours = replaced(options, **{"rt.example.org": "127.0.0.1", "httpPort: 80": f"httpPort: {port}"})
        page.write_text(replaced(page.read_text(), **{'  enabledTransports: ["ws", "wss"],\n': ours}))
        ann, bob = [await site.open(f"/?user={name}") for name in ("ann", "bob")]
        await shows(ann, "members", "Ann", "Bob")
        await shows(bob, "members", "Ann", "Bob")
        assert await site.node.metric("snorky_connections") == 2
        await ann.locator("#text").fill("Hello")
        await expect(bob.locator("#typing")).to_have_text("Ann is typing", timeout=SHOWN_MS)
        await ann.get_by_role("button").click()
        await shows(bob, "messages", "Ann: Hello")
        assert site.faults == []


@needs_pusher_js
@pytest.mark.parametrize("broadcaster", ["pusher", "reverb"])
async def test_options_of_laravel_echo_on_the_page_connect(tmp_path: Path, chromium: Browser, broadcaster: str) -> None:
    options = code_block(PUSHER_PAGE, "js echo", containing="new Echo")
    async with running(chromium, PUSHER, tmp_path, pusher_config(), {"PUSHER_SECRET": SECRET}) as site:
        page = await site.open("/?user=ann")
        await page.add_script_tag(path=ECHO)
        await page.add_script_tag(content="window.Echo = Echo.default;")  # as `import Echo from "laravel-echo"` does
        script = local_options(options, str(site.node.public_port))
        await page.evaluate(replaced(script, **{'broadcaster: "pusher"': f'broadcaster: "{broadcaster}"'}))
        await page.evaluate(ECHO_LISTENS)
        await site.post("/announcements", "For Echo")
        await expect(page.locator("#typing")).to_have_text("Echo: For Echo", timeout=SHOWN_MS)
        assert site.faults == []


@needs_centrifuge_js
async def test_chat_of_centrifugo_works_with_the_documented_changes(tmp_path: Path, chromium: Browser) -> None:
    config = code_block(CENTRIFUGO_PAGE, "toml centrifugo", containing="[services.pubsub]")
    secrets = {"made by: openssl rand -hex 32, too": API_KEY, "made by: openssl rand -hex 32": SECRET}
    env = {"CENTRIFUGO_TOKEN_SECRET": SECRET, "CENTRIFUGO_API_KEY": API_KEY}
    async with running(chromium, CENTRIFUGO, tmp_path, replaced(config, **secrets), env) as site:
        ann = await site.open("/?user=ann")
        await expect(ann.locator("#state")).to_have_text("connected", timeout=SHOWN_MS)
        await shows(ann, "members", "ann")
        bob = await site.open("/?user=bob")
        for page in (ann, bob):
            await shows(page, "members", "ann", "bob")
        await bob.locator("#text").fill("Hi")
        await bob.get_by_role("button").click()
        await site.post("/messages", "Welcome")
        for page in (ann, bob):
            await expect(page.locator("#messages li")).to_have_count(2, timeout=SHOWN_MS)
        assert set(await ann.locator("#messages li").all_text_contents()) == {"bob: Hi", "the house: Welcome"}
        await site.post("/notices/ann", "For ann only")
        await expect(ann.locator("#notice")).to_have_text("For ann only", timeout=SHOWN_MS)
        async with aiohttp.ClientSession() as http, http.get(f"{site.origin}/present") as response:
            assert json.loads(await response.text()) == ["ann", "bob"]
        carol = await site.open("/?user=carol")  # earlier messages come from the history
        await shows(carol, "messages", *await ann.locator("#messages li").all_text_contents())
        await expect(bob.locator("#notice")).to_have_text("")
        await carol.close()
        await shows(bob, "members", "ann", "bob")
        assert site.faults == []
