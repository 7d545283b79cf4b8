"""The tutorials, as a newcomer follows them: their commands and files unchanged, in an environment of their own.

The folder has what they use of the checkout: `make install` (already done), .venv, and clients/. Only addresses differ:
the test writes another env.sh, and the servers get free ports from the environment or as a last argument.
"""

import asyncio
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.support.processes.chromium import closing_pages
from tests.support.processes.nodes import NodeProcess, Process, RedisProcess, clean_environment
from tests.support.processes.tools import ROOT, free_port
from tests.support.scenarios.tokens import SECRET

pytestmark = [pytest.mark.needs("chromium", "redis-server", "make", "openssl"), pytest.mark.timeout(400)]

LINES_MAX = 120
INSTALL_S = 240
SHOWN_MS = 30_000  # a client reconnects after up to 20 s


@dataclass(frozen=True)
class Tutorial:
    """One page of docs/.

    folder: of the project that it makes. first_page, other_shop: paths of the shops of ann and eve. operators: what the
    page shows of ann and bob. ready: what its application prints.
    """

    name: str
    folder: str
    first_page: str
    other_shop: str
    operators: str
    ready: str

    @property
    def text(self) -> str:
        return (ROOT / "docs" / self.name).read_text()

    def files(self) -> dict[str, str]:
        """Return the files by their paths, as the info string of each block names them."""
        found = re.findall(r"^```(?:toml|python|html) (.+?)\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE)
        return dict(found)

    def shell(self) -> list[str]:
        """Return the blocks of commands."""
        return re.findall(r"^```sh\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE)


FASTAPI = Tutorial("tutorial.md", "shop", "/", "/?shop=8", "ann, bob", "Uvicorn running on")
DJANGO = Tutorial("tutorial-django.md", "live", "/shops/7", "/shops/8", "~1, ~2", "Starting development server")


@dataclass
class Shop:
    """A tutorial's servers while they run."""

    tutorial: Tutorial
    folder: Path
    env: dict[str, str]
    origin: str
    chromium: Browser
    gateway: NodeProcess

    def restarted_gateway(self) -> NodeProcess:
        return gateway_of(self.tutorial, self.folder, self.env)

    async def open(self, name: str, path: str) -> Page:
        """Log in with a browser context of its own."""
        if self.tutorial is FASTAPI:
            context = await self.chromium.new_context(http_credentials={"username": name, "password": name})
        else:
            context = await self.chromium.new_context()
        page = await context.new_page()
        await page.goto(f"{self.origin}{path}")
        if self.tutorial is DJANGO:
            for field in ("username", "password"):
                await page.locator(f"[name={field}]").fill(name)
            await page.get_by_role("button").click()
            await page.wait_for_url(f"{self.origin}{path}")
        return page


def prepare(tutorial: Tutorial, tmp_path: Path) -> Path:
    """Run the commands of the first step in a copy of the files that they need, and write the tutorial's files."""
    kept = shutil.ignore_patterns("tests", "test", "build", "*.egg-info", "node_modules")
    shutil.copytree(ROOT / "clients", tmp_path / "clients", ignore=kept)
    (tmp_path / "Makefile").write_text("install: .venv\n")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}
    # pip reads this 0 as --no-compile: Python compiles what it imports, a fraction of Django
    run(tutorial.shell()[0], tmp_path, {**env, "PIP_NO_COMPILE": "0"})
    folder = tmp_path / tutorial.folder
    for name, text in tutorial.files().items():
        if name.startswith("append "):
            path = folder / name.removeprefix("append ")
            path.write_text(path.read_text() + text)
        else:  # the tutorial names files in its folder, or with the folder's name
            path = folder / name if tutorial is DJANGO else tmp_path / name
            path.write_text(text)
    return folder


def run(block: str, cwd: Path, env: dict[str, str]) -> None:
    """Run a block of commands; each must succeed."""
    done = subprocess.run(
        ["bash", "-euc", block],
        cwd=cwd,
        env=clean_environment(env),
        timeout=INSTALL_S,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def command(block: str) -> list[str]:
    """Return the command of a server: what follows `. ./env.sh &&`."""
    first, _, rest = block.partition(" && ")
    assert first == ". ./env.sh" and rest, block
    return shlex.split(rest)


def gateway_of(tutorial: Tutorial, folder: Path, env: dict[str, str]) -> NodeProcess:
    return NodeProcess(env, argv=command(tutorial.shell()[-2]), cwd=folder)


@asynccontextmanager
async def followed(tutorial: Tutorial, tmp_path: Path, chromium: Browser) -> AsyncIterator[Shop]:
    """Follow a tutorial until its servers run."""
    folder = await asyncio.to_thread(prepare, tutorial, tmp_path)
    app_port, public_port = free_port(), free_port()
    origin = f"http://127.0.0.1:{app_port}"
    async with RedisProcess.running(tmp_path) as redis, closing_pages(chromium):
        env = {
            "SNORKY_REDIS_URL": redis.url,
            "SNORKY_AUTH__HMAC_SECRET": SECRET,
            "SNORKY_PUBLIC__PORT": str(public_port),
            "SNORKY_PUBLIC__ALLOWED_ORIGINS": f'["{origin}"]',
            "GATEWAY_URL": f"ws://127.0.0.1:{public_port}/ws",
            "UVICORN_PORT": str(app_port),
        }
        (folder / "env.sh").write_text("\n".join(f"export {name}={shlex.quote(env[name])}" for name in env))
        for block in tutorial.shell()[1:-2]:
            await asyncio.to_thread(run, block, folder, {})
        argv = command(tutorial.shell()[-1])
        if tutorial is DJANGO:
            argv += ["--noreload", str(app_port)]
        gateway = gateway_of(tutorial, folder, env)
        app = Process(argv, env=env, cwd=folder, ready=tutorial.ready)
        try:
            await gateway.wait_ready()
            await app.wait_ready()
            yield Shop(tutorial, folder, env, origin, chromium, gateway)
        finally:
            await gateway.close()
            await app.close()
            print(gateway.log, app.log)


async def order(page: Page, item: str) -> None:
    await page.locator("input:not([type=hidden])").fill(item)
    await page.get_by_role("button").click()


async def shows(page: Page, what: str, *texts: str) -> None:
    """Wait until a list of the page has exactly these texts, in this order."""
    await expect(page.locator(f"#{what} li")).to_have_text(list(texts), timeout=SHOWN_MS)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("tutorial", [FASTAPI, DJANGO], ids=["fastapi", "django"])
async def test_newcomer_gets_live_orders_that_survive_the_gateway(
    tutorial: Tutorial, tmp_path: Path, chromium: Browser
) -> None:
    async with followed(tutorial, tmp_path, chromium) as shop:
        ann, bob = [await shop.open(name, tutorial.first_page) for name in ("ann", "bob")]
        for page in (ann, bob):
            await expect(page.locator("#operators")).to_have_text(tutorial.operators, timeout=SHOWN_MS)
        await order(ann, "tea")
        notified = "Your order is stored: tea"
        for page in (ann, bob):
            await shows(page, "orders", "tea (ann)")
        await shows(ann, "notifications", notified)

        shop.gateway.kill()
        await shop.gateway.wait()
        for page in (ann, bob):
            await expect(page.locator("#status")).to_have_text("disconnected", timeout=SHOWN_MS)
        for item in ("bread", "salt"):
            async with bob.expect_response(lambda response: response.request.method == "POST") as answer:
                await order(bob, item)
            assert (await answer.value).ok
        again = shop.restarted_gateway()
        try:
            await again.wait_ready()
            for page in (ann, bob):
                await expect(page.locator("#status")).to_contain_text("missed orders: 2", timeout=SHOWN_MS)
                await shows(page, "orders", "tea (ann)", "bread (bob)", "salt (bob)")
                await expect(page.locator("#operators")).to_have_text(tutorial.operators, timeout=SHOWN_MS)
                await expect(page.locator("#error")).to_have_text("")
            # bob's notifications arrived after the restart too, and ann has none of them
            await shows(bob, "notifications", *(f"Your order is stored: {item}" for item in ("bread", "salt")))
            await shows(ann, "notifications", notified)
            await ann.reload()
            await shows(ann, "orders", "tea (ann)", "bread (bob)", "salt (bob)")

            eve = await shop.open("eve", tutorial.first_page)
            await expect(eve.locator("#error")).to_have_text("Shop 7: Not authorized", timeout=SHOWN_MS)
            await order(eve, "poison")
            await expect(eve.locator("#error")).to_have_text("Shop 7: eve does not work in shop 7", timeout=SHOWN_MS)
            await eve.goto(f"{shop.origin}{tutorial.other_shop}")
            await order(eve, "jam")
            await shows(eve, "orders", "jam (eve)")
            await shows(bob, "orders", "tea (ann)", "bread (bob)", "salt (bob)")
        finally:
            print(again.log)
            await again.close()


@pytest.mark.parametrize("tutorial", [FASTAPI, DJANGO], ids=["fastapi", "django"])
def test_files_of_a_tutorial_are_short(tutorial: Tutorial) -> None:
    lines = [line for text in tutorial.files().values() for line in text.splitlines() if line.strip()]
    assert 50 < len(lines) <= LINES_MAX
