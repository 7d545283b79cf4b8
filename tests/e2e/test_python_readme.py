"""The programs of clients/python/README.md, executed unchanged except for addresses."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes.nodes import GATEWAY, NodeProcess, RedisProcess, clean_environment
from tests.support.processes.tools import ROOT

pytestmark = pytest.mark.needs("redis-server")

CLIENT = ROOT / "clients" / "python"
README = (CLIENT / "README.md").read_text()
KEY = "the-key-of-the-backend-in-these-tests"
RULES = """
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "news"
history = 100
"""


@dataclass
class Place:
    redis: RedisProcess
    node: NodeProcess

    async def run(self, program: str) -> str:
        """Run a program with this test's addresses, and return its output."""
        program = program.replace("redis://127.0.0.1:6379/0", self.redis.url)
        program = program.replace("ws://127.0.0.1:8002/ws", self.node.websocket_url)
        program = program.replace("http://127.0.0.1:8003", f"http://127.0.0.1:{self.node.private_port}")
        program = program.replace('key="..."', f'key="{KEY}"')
        argv = [sys.executable, "-W", "error", "-c", program]
        env = clean_environment()
        run = asyncio.to_thread(subprocess.run, argv, env=env, capture_output=True, text=True, timeout=60)
        done = await run
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    config = tmp_path / "snorky.toml"
    config.write_text(RULES)
    async with RedisProcess.running(tmp_path) as redis:
        env = {"SNORKY_REDIS_URL": redis.url, "SNORKY_PRIVATE__API_KEY": KEY}
        async with NodeProcess.running(env, argv=[*GATEWAY, "serve", "--config", str(config)]) as node:
            yield Place(redis, node)


def program(*containing: str) -> str:
    """Join the README's Python blocks that have these words, one each."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    chosen = [[block for block in blocks if word in block] for word in containing]
    assert [len(each) for each in chosen] == [1] * len(containing)
    return "\n".join(each[0] for each in chosen)


async def test_publisher_of_the_readme_prints_a_position(place: Place) -> None:
    assert re.fullmatch(r"[0-9a-f]+:1:[0-9a-f]+\n", await place.run(program("Publisher(")))


async def test_client_of_the_readme_prints_its_own_publications(place: Place) -> None:
    assert re.fullmatch(
        r"\{'title': 'Hello'\} [0-9a-f]+:1:[0-9a-f]+\n", await place.run(program("asyncio.run(main())"))
    )


async def test_calls_of_the_readme_are_answered(place: Place) -> None:
    assert await place.run(program("transport = ", "call_many")) == ""


def test_settings_and_signals_of_the_readme_are_there() -> None:
    source = "".join(path.read_text() for path in (CLIENT / "snorky" / "client" / "django").glob("*.py"))
    for name in re.findall(r"^\| `(SNORKY_\w+)`", README, re.MULTILINE):
        assert name in source, name
    for name in re.findall(r"`snorky\.client\.django\.(\w+)`", README):
        assert name in source, name
