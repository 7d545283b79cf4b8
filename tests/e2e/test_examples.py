"""The programs of examples/, executed as they stand."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.support.nodes import NodeProcess, clean_environment
from tests.support.tools import ROOT

EXAMPLES = ROOT / "examples"
PATHS = {"PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python'}"}
SECRET = "s" * 64
KEY = "k" * 64


@asynccontextmanager
async def running(example: str, env: Mapping[str, str] | None = None) -> AsyncIterator[NodeProcess]:
    argv = (sys.executable, str(EXAMPLES / example))
    async with NodeProcess.running({**PATHS, **(env or {})}, argv=argv) as node:
        yield node


async def output_of(script: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run a program of the examples to its end; gives what it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / script),
        *arguments,
        env=clean_environment({**PATHS, **(env or {})}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return output.decode().strip()


async def talk(node: NodeProcess, *messages: Any, count: int = 0) -> list[Any]:
    """Run talk.py until as many messages have come as were sent, or `count`."""
    texts = [json.dumps(message) for message in messages]
    said = await output_of("talk.py", "--url", node.websocket_url, "--count", str(count or len(texts)), *texts)
    return [json.loads(line) for line in said.splitlines()]


async def ask(socket: aiohttp.ClientWebSocketResponse, service: str, command: str, **params: Any) -> Any:
    """Call, and give the reply's message; notifications before it are skipped."""
    await socket.send_json({"service": service, "message": {"command": command, "params": params, "callId": command}})
    while True:
        message = (await socket.receive_json(timeout=10))["message"]
        if message.get("callId") == command:
            return message.get("data", message)


async def test_echo_sends_back_any_json() -> None:
    async with running("echo/server.py") as node:
        sent = [{"service": "echo", "message": message} for message in ("hello", {"a": [1, None]}, 0)]
        assert await talk(node, *sent) == sent


async def test_calculator_computes_and_refuses() -> None:
    def call(command: str, **params: Any) -> Any:
        return {"service": "calculator", "message": {"command": command, "params": params, "callId": 1}}

    async with running("rpc/server.py") as node:
        replies = await talk(
            node,
            call("sum", number1=2, number2=3),
            call("log", number1=8, base=2),
            call("log", number1=1),
            call("log", number1=0),
            call("sum", number1=2, number2="3"),
            call("sum", number1=2),
        )
        messages = [reply["message"] for reply in replies]
        assert [message.get("data") for message in messages[:3]] == [5, 3, 0]
        texts = [message["message"] for message in messages[3:]]
        assert texts == ["There is no such logarithm", "Numbers only", "Invalid params"]


async def test_only_the_backend_publishes_to_a_private_pubsub() -> None:
    async with (
        running("pubsub_backend/server.py", {"SNORKY_PRIVATE__API_KEY": KEY}) as node,
        aiohttp.ClientSession() as session,
        session.ws_connect(node.websocket_url) as client,
    ):
        assert await ask(client, "pubsub", "subscribe", channel="news") is None
        refused = await ask(client, "pubsub", "publish", channel="news", message="forged")
        assert refused["message"] == "Not authorized"
        url = {"SNORKY_BACKEND_URL": f"http://127.0.0.1:{node.private_port}/backend"}
        publish = ("pubsub_backend/publish.py", "news", '{"title": "Hello"}')
        assert (await output_of(*publish, env=url)).startswith("not published: HTTP 401")
        assert await output_of(*publish, env={**url, "SNORKY_PRIVATE__API_KEY": KEY}) == "published"
        heard = await client.receive_json(timeout=10)
        assert heard["message"] == {"type": "message", "channel": "news", "message": {"title": "Hello"}}


async def test_chat_is_for_who_has_a_token_and_some_rooms_are_for_staff() -> None:
    env = {"SNORKY_AUTH__HMAC_SECRET": SECRET}

    async def headers(name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {await output_of('chat/token_for.py', name, env=env)}"}

    async with running("chat/server.py", env) as node, aiohttp.ClientSession() as session:
        url = node.websocket_url
        async with (
            session.ws_connect(url, headers=await headers("Ada")) as ada,
            session.ws_connect(url, headers=await headers("Bob@staff")) as bob,
            session.ws_connect(url) as nobody,
        ):
            assert (await ask(nobody, "chat", "join", channel="lobby"))["message"] == "Not authenticated"
            assert await ask(ada, "chat", "join", channel="lobby") == {"members": ["Ada"]}
            assert await ask(bob, "chat", "join", channel="lobby") == {"members": ["Ada", "Bob@staff"]}
            joined = (await ada.receive_json(timeout=10))["message"]
            assert (joined["type"], joined["from"], joined["status"]) == ("presence", "Bob@staff", "joined")
            assert await ask(bob, "chat", "send", channel="lobby", body="Hi") is None
            message = (await ada.receive_json(timeout=10))["message"]
            assert (message["from"], message["body"]) == ("Bob@staff", "Hi")
            assert (await ask(ada, "chat", "join", channel="staff:plans"))["message"] == "Not authorized"
            assert await ask(bob, "chat", "join", channel="staff:plans") == {"members": ["Bob@staff"]}


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_every_example_says_what_it_is(path: Any) -> None:
    assert path.read_text().startswith('"""') or path.stat().st_size == 0
