"""The programs of examples/, executed unchanged."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.support.processes.nodes import NodeProcess, Process, clean_environment
from tests.support.processes.tools import ROOT, free_port, program

EXAMPLES = ROOT / "examples"
SECRET = "the-secret-of-these-tests-0123456789"
KEY = "the-key-of-the-backend-in-these-tests"


@asynccontextmanager
async def running(example: str, env: Mapping[str, str] | None = None) -> AsyncIterator[NodeProcess]:
    argv = (sys.executable, str(EXAMPLES / example))
    async with NodeProcess.running(env, argv=argv) as node:
        yield node


async def output_of(script: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run a program of the examples to its end; returns its output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / script),
        *arguments,
        env=clean_environment(env),
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


async def test_talk_reports_an_unreachable_gateway_and_a_refusal() -> None:
    said = await output_of("talk.py", "--url", f"ws://127.0.0.1:{free_port()}/ws", "{}")
    assert said.startswith("error: ws://127.0.0.1:") and "cannot be reached" in said and "Traceback" not in said
    said = await output_of("talk.py", "--url", "no url", "{}")
    assert said.startswith("error: ") and "Traceback" not in said
    said = await output_of("talk.py", "--url", f"ws://127.0.0.1:{free_port()}/ws", "--token", "-", "{}")
    assert "cannot be reached" in said  # standard input is empty: no token, and no error about it
    async with NodeProcess.running() as node:
        said = await output_of("talk.py", "--url", f"ws://127.0.0.1:{node.private_port}/ws", "{}")
    assert said.startswith("error: ") and "404" in said and "Traceback" not in said


async def test_a_program_of_ones_own_reports_invalid_settings() -> None:
    wrong = {"SNORKY_PUBLIC__PORT": "many", "SNORKY_AUTH__LEEWAY_S": "-1"}
    for environment in (wrong, {"SNORKY_PUBLIC__HOST": "0.0.0.0"}):
        said = await output_of("echo/server.py", env=environment)
        assert [line.partition(":")[0] for line in said.splitlines()] == ["error"] * len(environment), said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = await output_of("echo/server.py", env={"SNORKY_PUBLIC__PORT": port, "SNORKY_PRIVATE__PORT": "0"})
    assert "error: cannot listen on" in said and "Traceback" not in said


async def ask(socket: aiohttp.ClientWebSocketResponse, service: str, command: str, **params: Any) -> Any:
    """Call, and return the reply's message; notifications before it are skipped."""
    await socket.send_json({"service": service, "message": {"command": command, "params": params, "callId": command}})
    while True:
        message = (await socket.receive_json(timeout=30))["message"]
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
        heard = await client.receive_json(timeout=30)
        assert heard["message"] == {"type": "message", "channel": "news", "message": {"title": "Hello"}}


async def test_chat_needs_a_token_and_some_rooms_are_for_staff() -> None:
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
            joined = (await ada.receive_json(timeout=30))["message"]
            assert (joined["type"], joined["from"], joined["status"]) == ("presence", "Bob@staff", "joined")
            assert await ask(bob, "chat", "send", channel="lobby", body="Hi") is None
            message = (await ada.receive_json(timeout=30))["message"]
            assert (message["from"], message["body"]) == ("Bob@staff", "Hi")
            assert (await ask(ada, "chat", "join", channel="staff:plans"))["message"] == "Not authorized"
            assert await ask(bob, "chat", "join", channel="staff:plans") == {"members": ["Bob@staff"]}


@dataclass(frozen=True)
class Todo:
    """The to-do list: its gateway, its site, and the environment of its programs."""

    node: NodeProcess
    site: str
    env: Mapping[str, str]


@pytest.fixture
async def todo(tmp_path: Path) -> AsyncIterator[Todo]:
    port = free_port()
    site = f"http://127.0.0.1:{port}"
    key = {"SNORKY_PRIVATE__API_KEY": KEY}
    origins = {"SNORKY_PUBLIC__ALLOWED_ORIGINS": json.dumps([site])}
    async with running("todo/serve_gateway.py", {**key, **origins}) as node:
        env = {
            **key,
            "SNORKY_BACKEND_URL": f"http://127.0.0.1:{node.private_port}/backend",
            "GATEWAY_URL": node.websocket_url,
            "TODO_DATABASE": str(tmp_path / "db.sqlite3"),
        }
        migrated = await output_of("todo/manage.py", "migrate", "--run-syncdb", env=env)
        assert "Creating table todo_task" in migrated
        argv = (sys.executable, str(EXAMPLES / "todo/manage.py"), "runserver", "--noreload", f"127.0.0.1:{port}")
        django = Process(argv, env=env, ready="Starting development server")
        try:
            await django.wait_ready()
            yield Todo(node, site, env)
        finally:
            await django.close()


@asynccontextmanager
async def watching(todo: Todo, *arguments: str) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Run watch.py; yields a function that waits for its next line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / "todo/watch.py"),
        *("--site", todo.site, "--gateway", todo.node.websocket_url, *arguments),
        env=clean_environment(todo.env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )

    async def line() -> str:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            return (await process.stdout.readline()).decode().strip()

    try:
        yield line
    finally:
        process.kill()
        await process.communicate()


async def test_todo_list_publishes_every_change_after_its_commit(todo: Todo) -> None:
    async with aiohttp.ClientSession(f"{todo.site}/api/", raise_for_status=True) as session:
        await session.post("tasks/", json={"title": "Buy milk"})
        async with watching(todo) as every, watching(todo, "--open") as undone:
            first = {"id": 1, "title": "Buy milk", "completed": False}
            for line in (every, undone):
                assert await line() == f"task {json.dumps(first)}"
                assert await line() == "subscribed"
            await session.patch("tasks/1/", json={"completed": True})
            done = {**first, "completed": True}
            update = {"type": "update", "model": "Task", "newData": done, "oldData": first}
            assert json.loads((await every()).removeprefix("update ")) == update
            gone = {"type": "delete", "model": "Task", "data": first}
            assert json.loads((await undone()).removeprefix("delete ")) == gone
            # by a job, in a transaction that is rolled back, and in one that is committed
            job = (
                "from django.db import transaction\n"
                "try:\n"
                "    with transaction.atomic(): Task.objects.create(title='never'); 1 / 0\n"
                "except ZeroDivisionError: pass\n"
                "with transaction.atomic(): Task.objects.create(title='a'); Task.objects.create(title='b')"
            )
            await output_of("todo/manage.py", "shell", "-c", job, env=todo.env)
            for line in (every, undone):
                heard = [json.loads((await line()).removeprefix("insert ")) for _ in range(2)]
                assert [delta["data"]["title"] for delta in heard] == ["a", "b"]
            await session.delete("tasks/1/")
            assert json.loads((await every()).removeprefix("delete ")) == {**gone, "data": done}


@pytest.mark.needs("chromium")
async def test_todo_list_is_the_same_in_two_browsers(todo: Todo) -> None:
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        chromium = await playwright.chromium.launch(executable_path=program("chromium"), args=arguments)
        try:
            one, other = [await chromium.new_page() for _ in range(2)]
            for page in (one, other):
                await page.goto(todo.site)
                await expect(page.get_by_role("status")).to_have_text("in step")
            await add(one, "Buy milk")
            await expect(other.get_by_role("listitem")).to_have_count(1)  # else the site may store the other task first
            await add(other, "<b>Bake</b>")
            for page in (one, other):
                await expect(page.get_by_role("listitem")).to_contain_text(["Buy milk", "<b>Bake</b>"])
            await one.get_by_role("checkbox").first.click()
            await expect(other.get_by_role("checkbox").first).to_be_checked()
            await other.get_by_role("button", name="Remove").last.click()
            for page in (one, other):
                await expect(page.get_by_role("listitem")).to_have_count(1)
        finally:
            await chromium.close()


async def add(page: Page, title: str) -> None:
    await page.get_by_role("textbox").fill(title)
    await page.get_by_role("button", name="Add").click()


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_every_example_has_a_description(path: Any) -> None:
    assert path.read_text().startswith('"""') or path.stat().st_size == 0
