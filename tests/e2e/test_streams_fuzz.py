"""A seeded fuzzer of streams of events and plain WebSockets, against a node in a process of its own.

10,000 requests a protocol, right, nearly right, or none at all; half of the plain WebSockets also send frames. A canary
gets its numbered messages meanwhile. At the end there is no unhandled error, no number is missing, and nothing of the
others is left. SNORKY_FUZZ_SEED repeats a run, SNORKY_FUZZ_CASES changes its length.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from snorky.client.aio import Publisher
from tests.support.clients.raw_ws import BINARY, TEXT, RawClient, frame, handshake_head
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.fuzz import CASES, WAIT_S, mutated, random_of, run_cases
from tests.support.scenarios.tokens import SECRET, hmac_token

ENV = {
    "SNORKY_AUTH__HMAC_SECRET": SECRET,
    "SNORKY_LIMITS__CONNECTIONS_PER_IP": "0",  # a connection counts until it is closed
    "SNORKY_SERVICES__CHAT__CLASS": "snorky.services.chat:ChatService",
    "SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService",
    "SNORKY_SERVICES__PUBSUB__UNMATCHED": "open",
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(
        [{"match": "kept:*", "history": 10, "presence": True, "join_leave": True, "allow_publish": "authenticated"}]
    ),
}
ANSWER_S = 1.0  # for an answer, which only incomplete requests do not get
TOKEN = hmac_token("ann", exp=int(time.time()) + 3_600)
ODD = ("", "%", "%ff", "a\u20ac", "x" * 300, "x" * 9_000, '["room",5]', "a,b", "-", "..", "\x01", "null", "kept:")


def some_query(rng: random.Random) -> str:
    usual: dict[str, Callable[[], str]] = {
        "channel": lambda: rng.choice(("kept:a", "plain", f"kept:{rng.randrange(5)}")),
        "service": lambda: rng.choice(("pubsub", "chat", "nothing")),
        "ticket": lambda: f"{rng.getrandbits(120):030x}",
        "lastEventID": lambda: rng.choice(("6b0c:7:a1", ":3", "6b0c:7:a1,-", "-")),
        "format": lambda: rng.choice(("text", "json")),
        "token": lambda: TOKEN,
        "other": lambda: "1",
    }
    names = ["channel"] * rng.choice((0, 1, 1, 1, 1, 1, 1, 2, 12))
    names += [name for name in usual if name != "channel" and rng.random() < 0.05]
    values = [(name, usual[name]() if rng.random() < 0.9 else rng.choice(ODD)) for name in names]
    return "&".join(f"{name}={quote(value, safe='%,:') if rng.random() < 0.9 else value}" for name, value in values)


def some_request(rng: random.Random) -> bytes:
    """A request for a stream or a ticket, or nearly one."""
    is_ticket = rng.random() < 0.1
    method = rng.choice(("POST", "POST", "OPTIONS", "GET")) if is_ticket else rng.choice(("GET",) * 6 + ("HEAD", "PUT"))
    headers = ["Host: localhost", "Accept: text/event-stream"]
    if rng.random() < 0.5:
        headers.append(f"Authorization: Bearer {rng.choice((*[TOKEN] * 6, 'x.y.z', '', 'x' * 9_000))}")
    if rng.random() < 0.2:
        headers.append(f"Last-Event-ID: {rng.choice(('6b0c:7:a1', ':3', ',', 'a b', 'x' * 5_000, '-,-'))}")
    if rng.random() < 0.2:
        headers.append(rng.choice(("Origin: http://evil.example", "Content-Length: 5", "Connection: close", "bad")))
    target = f"/sse{'/ticket' * is_ticket}?{some_query(rng)}"
    return mutated(rng, "\r\n".join((f"{method} {target} HTTP/1.1", *headers, "", "")).encode("utf-8", "replace"))


def some_socket(rng: random.Random) -> bytes:
    """A handshake of a plain WebSocket, and unexpected frames."""
    headers = {"Authorization": f"Bearer {TOKEN}"} if rng.random() < 0.5 else {}
    head = handshake_head(headers, path=f"/raw?{some_query(rng)}".encode("ascii", "replace").decode())
    bodies = (b"", b"text", b'{"a":1}', b"\xff\xfe", b"x" * 2_000, b'{"command":"subscribe"}')
    frames = [frame(rng.choice((TEXT, BINARY, 9, 8, 3)), rng.choice(bodies)) for _ in range(rng.choice((0, 1, 4)))]
    return mutated(rng, head) + b"".join(frames)


async def run_case(number: int, protocol: str, port: int) -> None:
    """Send the bytes of a case; any reaction of the node is right."""
    rng = random_of(number)
    data = some_request(rng) if protocol == "sse" else some_socket(rng)
    async with await RawClient.open("127.0.0.1", port) as client:
        try:
            await client.send(data)
            if number % 3:
                async with asyncio.timeout(ANSWER_S):
                    await client._read()
                async with asyncio.timeout(WAIT_S):
                    await client._read()
            if number % 5 == 0:
                client.reset()
        except (TimeoutError, ConnectionError):
            pass


@asynccontextmanager
async def listening(protocol: str, port: int, seen: list[Any]) -> AsyncIterator[None]:
    """Record the numbers on the channel `canary`. A plain WebSocket is not told when its subscription begins."""
    url = f"http://127.0.0.1:{port}/{protocol}?channel=canary"
    ready = asyncio.Event()

    async def hear_events() -> None:
        async with session.get(url, headers={"Accept": "text/event-stream"}) as response:
            assert response.status == 200
            ready.set()
            async for line in response.content:
                if line.startswith(b"data: ") and line[6:].strip().isdigit():
                    seen.append(int(line[6:]))

    async def hear_messages() -> None:
        async with session.ws_connect(url) as socket:
            ready.set()
            async for message in socket:
                seen.append(json.loads(message.data))

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        hearing = asyncio.create_task(hear_events() if protocol == "sse" else hear_messages())
        async with asyncio.timeout(30.0):
            await ready.wait()
        yield
        assert not hearing.done(), "the canary's connection has ended"
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("protocol", ["sse", "raw"])
async def test_ten_thousand_odd_requests_affect_no_other_and_leave_no_state(tmp_path: Path, protocol: str) -> None:
    seen: list[Any] = []
    async with (
        RedisProcess.running(tmp_path) as redis,
        NodeProcess.running(ENV | {"SNORKY_REDIS_URL": redis.url}) as node,
    ):
        async with listening(protocol, node.public_port, seen), Publisher(redis.url) as publisher:
            sent = 0
            async with asyncio.timeout(30):
                while not seen:
                    await publisher.publish("canary", sent)
                    sent += 1
                    await asyncio.sleep(0.1)
            async with asyncio.TaskGroup() as group:
                cases = group.create_task(run_cases(lambda number: run_case(number, protocol, node.public_port)))
                while not cases.done():
                    await publisher.publish("canary", sent)
                    sent += 1
                    await asyncio.wait((cases,), timeout=0.1)

            async def is_heard() -> bool:
                return bool(seen[-1] == sent - 1)

            await eventually(is_heard, within_s=30, what="the canary has the last number")
            assert seen == list(range(seen[0], sent))

            async def is_alone() -> bool:
                return [await node.metric(f"snorky_{name}") for name in ("connections", "subscriptions")] == [1, 1]

            await eventually(is_alone, within_s=30, what="the canary alone is left")
            opened = await node.metric("snorky_connections_opened_total")
            assert opened > CASES / 10, f"too few requests were right to be a test: {opened}"
        lines = [line for line in node.log.splitlines() if '"level": "error"' in line or "Traceback" in line]
        assert not lines, lines[:3]
