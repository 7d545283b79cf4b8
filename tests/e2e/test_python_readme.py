"""The programs of clients/python/README.md, executed unchanged except for addresses."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from snorky.gateway.auth.tokens import FixedKey, Key, Verifier
from snorky.gateway.errors import InvalidToken
from tests.support.processes.nodes import GATEWAY, NodeProcess, RedisProcess, clean_environment
from tests.support.processes.tools import ROOT
from tests.support.scenarios.pages import code_block
from tests.support.scenarios.tokens import SECRET

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
TOKEN_RULES = """
[services.auth]
class = "snorky.services.auth:AuthService"
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "orders:*"
history = 100
allow_subscribe = "token"
"""


@dataclass
class Place:
    redis: RedisProcess
    node: NodeProcess

    async def run(self, program: str, **env: str) -> str:
        """Run a program with this test's addresses, and return its output."""
        program = program.replace("redis://127.0.0.1:6379/0", self.redis.url)
        program = program.replace("ws://127.0.0.1:8002/ws", self.node.websocket_url)
        program = program.replace("http://127.0.0.1:8003", f"http://127.0.0.1:{self.node.private_port}")
        program = program.replace('key="..."', f'key="{KEY}"')
        return await output_of(program, **env)


async def output_of(program: str, **env: str) -> str:
    """Run a program with these variables, and return its output."""
    argv = [sys.executable, "-W", "error", "-c", program]
    env = {**clean_environment(), **env}
    done = await asyncio.to_thread(subprocess.run, argv, env=env, capture_output=True, text=True, timeout=60)
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
    """Join the README's Python blocks that contain these texts."""
    return "\n".join(code_block(CLIENT / "README.md", "python", containing=text) for text in containing)


async def test_publisher_of_the_readme_prints_a_position(place: Place) -> None:
    assert re.fullmatch(r"[0-9a-f]+:1:[0-9a-f]+\n", await place.run(program("Publisher(")))


async def test_client_of_the_readme_prints_its_own_publications(place: Place) -> None:
    assert re.fullmatch(
        r"\{'title': 'Hello'\} [0-9a-f]+:1:[0-9a-f]+\n", await place.run(program("asyncio.run(main())"))
    )


async def test_subscriber_with_a_token_of_the_readme_reads_its_channel_and_no_other(tmp_path: Path) -> None:
    auth = {"SNORKY_AUTH__HMAC_SECRET": SECRET}
    config = tmp_path / "snorky.toml"
    config.write_text(TOKEN_RULES)
    async with RedisProcess.running(tmp_path) as redis:
        env = {"SNORKY_REDIS_URL": redis.url, **auth}
        async with NodeProcess.running(env, argv=[*GATEWAY, "serve", "--config", str(config)]) as node:
            printed = await Place(redis, node).run(program("asyncio.run(follow())"), **auth)
    assert printed == "{'state': 'paid'}\nnot_authorized\n"


async def test_calls_of_the_readme_are_answered(place: Place) -> None:
    assert await place.run(program("transport = ", "call_many")) == ""


async def test_tokens_of_the_readme_are_those_of_a_client_and_of_a_channel() -> None:
    printed = await output_of(program("signer.subscription_token("), SNORKY_AUTH__HMAC_SECRET=SECRET)
    connection, subscription = printed.split()
    verifier = Verifier(FixedKey(Key("HS256", SECRET.encode())))
    assert (await verifier.verify(connection)).identity == "alice"
    with pytest.raises(InvalidToken) as caught:
        await verifier.verify(subscription)
    assert caught.value.reason == "subscription_token"


# asks the application itself, without a server, first without a user and then for a user with two shops
ASK = """
import asyncio, json
from types import SimpleNamespace

async def ask(user):
    sent = []
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message):
        sent.append(message)
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/realtime-token", "raw_path": b"",
             "query_string": b"", "headers": [], "user": user}
    await app(scope, receive, send)
    return [sent[0]["status"], json.loads(b"".join(each["body"] for each in sent[1:]))]

print(json.dumps([asyncio.run(ask(user)) for user in (None, SimpleNamespace(id=7, shops=["a", "b"]))]))
"""


async def test_route_of_the_readme_returns_tokens_to_logged_in_users_only() -> None:
    printed = await output_of(program("FastAPI()") + ASK, SNORKY_AUTH__HMAC_SECRET=SECRET)
    (refused, _), (accepted, answer) = json.loads(printed)
    assert (refused, accepted) == (401, 200)
    found = await Verifier(FixedKey(Key("HS256", SECRET.encode()))).verify(answer["token"])
    assert found.identity == "~7"


def test_settings_and_signals_of_the_readme_are_there() -> None:
    source = "".join(path.read_text() for path in (CLIENT / "snorky" / "client" / "django").glob("*.py"))
    for name in re.findall(r"^\| `(SNORKY_\w+)`", README, re.MULTILINE):
        assert name in source, name
    for name in re.findall(r"`snorky\.client\.django\.(\w+)`", README):
        assert name in source, name
