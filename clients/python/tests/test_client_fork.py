"""Objects that are used before and after a fork. Each test runs a separate program, because pytest has threads.

The programs call os.fork(); an alarm ends a process that hangs.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from realtime_server import RealtimeServer
from scripted_redis import answer_each, redis_url, text
from scripted_server import ScriptedServer, answer, reply

PACKAGES = Path(__file__).parents[1]
DEADLINE_S = 60
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

BEGIN = """
import asyncio, os, signal, sys, warnings

warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads, which is tested here
signal.alarm(50)

def fork(in_child):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        in_child()
        sys.exit(0)  # a normal exit must not wait for threads of the parent
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print("child", code, flush=True)
"""


async def said_by(program: str, *arguments: str) -> list[str]:
    """Run a program to its end; return the lines that it and its child printed."""

    def run() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-u", "-c", BEGIN + program, *arguments]
        env = {**os.environ, "PYTHONPATH": str(PACKAGES)}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE_S)

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout.splitlines()


PUBLISHER = """
from snorky.client.aio import Publisher

async def publish(*numbers):
    return [str(each.position) for each in await asyncio.gather(*[publisher.publish("a", n) for n in numbers])]

publisher = Publisher(sys.argv[1])
print(*asyncio.run(publish(*range(20))))  # more than there are threads: all threads exist now and are idle

def in_child():
    print(*asyncio.run(publish(20, 21, 22)), flush=True)
    asyncio.run(publisher.aclose())

fork(in_child)
print(*asyncio.run(publish(23)))
asyncio.run(publisher.aclose())
"""


async def test_publisher_of_asyncio_goes_on_in_both_processes() -> None:
    echo = answer_each(lambda words: text(f"e:{words[4].decode()}:a"))
    with ScriptedServer(*[[echo]] * 20) as server:
        said = await said_by(PUBLISHER, redis_url(server))
    positions = [f"e:{number}:a" for number in range(24)]
    assert [line.split() for line in said] == [positions[:20], positions[20:23], ["child", "0"], positions[23:]]


BACKEND = """
from snorky.client import SnorkyHTTPTransport
from snorky.client.aio import AsyncSnorkyBackend

backend = AsyncSnorkyBackend(SnorkyHTTPTransport(sys.argv[1]), concurrency_max=1)
print(asyncio.run(backend.call("echo", "say")))

def in_child():
    print(asyncio.run(backend.call("echo", "say")), flush=True)
    asyncio.run(backend.aclose())

fork(in_child)
print(asyncio.run(backend.call("echo", "say")))
asyncio.run(backend.aclose())
"""


async def test_backend_of_asyncio_goes_on_in_both_processes() -> None:
    ok = answer(reply(1))
    with ScriptedServer([ok, ok], [ok], [ok]) as server:
        said = await said_by(BACKEND, server.url)
    data: Any = reply(1)["message"]["data"]
    assert said == [str(data), str(data), "child 0", str(data)]


CLIENT = """
from snorky.client.aio import Client

async def enter():
    client = await Client(sys.argv[1]).__aenter__()
    news = await client.subscribe("news").ready()
    return client, news

loop = asyncio.new_event_loop()
client, news = loop.run_until_complete(enter())

async def attempt(make):
    try:
        await make()
    except RuntimeError as error:
        return str(error)

def in_child():
    calls = [lambda: client.call("test", "echo", x=1), lambda: client.publish("news", 1), lambda: news.ready()]
    calls += [lambda: anext(news), client.wait_ended]
    said = {asyncio.run(attempt(make)) for make in calls}
    print(len(said), "after the fork" in str(said), client.is_connected, flush=True)
    asyncio.run(news.close())
    asyncio.run(client.aclose())

fork(in_child)
print(loop.run_until_complete(client.call("test", "echo", x=1)), client.is_connected)
loop.run_until_complete(client.aclose())
"""


async def test_realtime_client_belongs_to_the_process_that_entered_it() -> None:
    async with RealtimeServer.running() as server:
        said = await said_by(CLIENT, server.url)
        assert len(server.connections) == 1
        assert "unsubscribe" not in str(server.requests)
    assert said == ["1 True False", "child 0", "{'x': 1} True"]
