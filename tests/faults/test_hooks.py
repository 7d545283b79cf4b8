"""A node whose backend is slow, down, flapping or talks nonsense, and 10,000 clients at once: bounded, counted, closed.

In every case:
- no client is admitted that the backend did not admit;
- every client gets its answer in time, and every question is counted once;
- clients that are connected already notice nothing.
"""

import asyncio
import itertools
import json
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from tests.support.clients.raw_ws import handshake_head
from tests.support.processes.nodes import NodeProcess
from tests.support.processes.tools import eventually
from tests.support.scenarios.tokens import SECRET, hmac_token
from tests.support.servers.hook_backend import HookBackend

TIMEOUT_S = 0.5
MARGIN_S = 3.0  # for a machine of two cores that is busy
CROWD = 10_000
CONCURRENCY, QUEUE = 8, 256


@contextmanager
def descriptors(needed: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(needed, hard)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass
class Scene:
    """A node and its backend. statuses: of all handshakes. longest_s: until a handshake was answered."""

    node: NodeProcess
    backend: HookBackend
    statuses: Counter[int] = field(default_factory=Counter)
    admitted: set[str] = field(default_factory=set)
    longest_s: float = 0.0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, identity: str) -> int:
        """Try to connect; the connection stays open. Returns the status."""
        began_s = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.node.public_port)
        self.writers.append(writer)
        writer.write(handshake_head({"Authorization": f"Bearer {hmac_token(identity, exp=time.time() + 600)}"}))
        status = int((await reader.readline()).split()[1])
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        self.statuses[status] += 1
        if status == 101:
            self.admitted.add(identity)
        return status

    async def series(self, name: str, by: str = "outcome") -> dict[str, float]:
        """Return the values of a metric, of the connect hook if it has hooks, by one of its labels."""
        _, text = await self.node.ask("/metrics", timeout_s=30.0)
        return {
            sample.labels.get(by, ""): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and sample.labels.get("operation", "connect") == "connect"
        }

    async def counted(self) -> dict[str, int]:
        return {outcome: int(value) for outcome, value in (await self.series("snorky_hook_calls_total")).items()}


@asynccontextmanager
async def scene(**settings: str) -> AsyncIterator[Scene]:
    async with HookBackend() as backend:
        env = {
            "SNORKY_AUTH__HMAC_SECRET": SECRET,
            "SNORKY_HOOKS__SECRET": SECRET,
            "SNORKY_HOOKS__CONNECT__URL": backend.url,
            "SNORKY_HOOKS__CONNECT__TIMEOUT_S": str(TIMEOUT_S),
            "SNORKY_HOOKS__CONNECT__CONCURRENCY": str(CONCURRENCY),
            "SNORKY_HOOKS__CONNECT__QUEUE_MAX": str(QUEUE),
            "SNORKY_LIMITS__CONNECTIONS_PER_IP": "0",
            "SNORKY_LIMITS__REQUEST_HEADER_TIMEOUT_S": "60",
            "SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService",
            "SNORKY_SERVICES__PUBSUB__UNMATCHED": "open",
            **settings,
        }
        async with NodeProcess.running(env) as node:

            async def is_ready() -> bool:
                return await node.status("/readyz") == 200

            await eventually(is_ready, within_s=15, what="the node is ready")
            made = Scene(node, backend)
            try:
                yield made
            finally:
                for writer in made.writers:
                    writer.transport.abort()
            assert "Traceback" not in node.log, node.log[-3000:]


@asynccontextmanager
async def connected_client(node: NodeProcess) -> AsyncIterator[None]:
    """A client that connected before publishes and receives during the block; every message arrives in time."""
    async with aiohttp.ClientSession() as session, session.ws_connect(node.websocket_url) as client:

        async def call(command: str, **params: Any) -> None:
            await client.send_json(
                {"service": "pubsub", "message": {"command": command, "params": params, "callId": 1}}
            )

        await call("subscribe", channel="news")
        assert (await client.receive_json(timeout=10))["message"]["type"] == "response"
        is_over = asyncio.Event()

        async def publish() -> int:
            for number in itertools.count():
                await call("publish", channel="news", message=number)
                heard = [(await client.receive_json(timeout=10))["message"] for _ in range(2)]
                assert {"type": "message", "channel": "news", "message": number} in heard
                if is_over.is_set():
                    return number
                await asyncio.sleep(0.02)  # within its rate limit
            raise AssertionError

        publishing = asyncio.create_task(publish())
        try:
            yield
        finally:
            is_over.set()
            assert await publishing > 0


async def has_logged(node: NodeProcess, text: str) -> bool:
    return text in node.log


def answers(allowed: Callable[[str], bool], after_s: float = 0.0) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def respond(request: web.Request) -> web.Response:
        await asyncio.sleep(after_s)  # the backend's own work
        return web.json_response({"allow": allowed(json.loads(await request.read())["identity"] or "")})

    return respond


def is_good(identity: str) -> bool:
    return not identity.startswith("bad")


async def slow(backend: HookBackend) -> None:
    """Answer everything, but too late."""
    backend.respond = answers(lambda _: True, after_s=4 * TIMEOUT_S)


async def down(backend: HookBackend) -> None:
    """Do not listen."""
    await backend.stop()


async def nonsense(backend: HookBackend) -> None:
    """Give another wrong answer each time."""
    wrong = itertools.cycle(
        [
            web.Response(status=200, text="<html>Log in</html>"),
            web.Response(status=200, text='{"allow": "yes"}'),
            web.Response(status=500, text='{"allow": true}'),
            web.Response(status=302, headers={"Location": "/elsewhere"}),
            web.Response(status=200, body=b'{"allow": true}'.ljust(20_000)),
        ]
    )

    async def respond(request: web.Request) -> web.StreamResponse:
        each = next(wrong)
        return web.Response(status=each.status, body=each.body, headers={"Location": each.headers.get("Location", "")})

    backend.respond = respond


@pytest.mark.parametrize("break_it", [slow, down, nonsense])
async def test_backend_that_gives_no_usable_answer_admits_nobody(break_it: Callable[[HookBackend], Any]) -> None:
    async with scene() as made, connected_client(made.node):
        before = (await made.counted()).get("ok", 0)
        await break_it(made.backend)
        for round_ in range(5):
            await asyncio.gather(*(made.connect(f"user{round_}-{number}") for number in range(20)))
        assert made.statuses == {503: 100}
        assert made.longest_s <= 2 * TIMEOUT_S + MARGIN_S
        counted = await made.counted()
        assert (counted.get("ok", 0), counted.get("failed", 0) + counted.get("busy", 0)) == (before, 100)
        await eventually(lambda: has_logged(made.node, "hook failed"), within_s=30, what="the failures are logged")
        assert made.node.log.count("hook failed") <= 60
        # and it recovers
        await made.backend.stop()
        made.backend.respond = answers(is_good)
        await made.backend.start()

        async def is_admitted() -> bool:
            return await made.connect("later") == 101

        await eventually(is_admitted, within_s=10, what="clients are admitted again")
        assert await made.connect("bad") == 403


async def test_dead_backend_costs_few_clients_the_timeout() -> None:
    async with scene() as made:
        await slow(made.backend)
        began_s = time.monotonic()
        for number in range(40):
            await made.connect(f"user{number}")
        assert made.statuses == {503: 40}
        assert time.monotonic() - began_s < 20 * TIMEOUT_S, "not each of them waits for the timeout"
        assert len(made.backend.requests) < 20


async def test_flapping_backend_decides_whenever_it_answers_and_nobody_else_does() -> None:
    async with scene() as made, connected_client(made.node):
        made.backend.respond = answers(is_good)
        is_over = asyncio.Event()

        async def flap() -> None:
            while not is_over.is_set():
                await made.backend.stop()
                await asyncio.sleep(0.3)  # the fault's own rhythm
                await made.backend.start()
                await asyncio.sleep(1.5)

        async def come(name: str) -> None:
            for number in range(100):
                await made.connect(f"{name}{number}")
                await asyncio.sleep(0.08)  # the clients' own rhythm

        flapping = asyncio.create_task(flap())
        await asyncio.gather(*(come(name) for name in ("good", "bad", "ann", "bob")))
        is_over.set()
        await flapping
        assert not any(identity.startswith("bad") for identity in made.admitted)
        assert made.statuses[101] > 10 and made.statuses[403] > 5 and made.statuses[503] > 5, made.statuses
        assert set(made.statuses) == {101, 403, 503}
        counted = await made.counted()
        assert counted["ok"] - 1 == made.statuses[101] and counted["refused"] == made.statuses[403]
        assert counted.get("failed", 0) + counted.get("busy", 0) == made.statuses[503]


async def test_ten_thousand_clients_at_once_are_bounded_and_counted() -> None:
    with descriptors(CROWD + 1_000):
        async with scene(SNORKY_HOOKS__CONNECT__TIMEOUT_S="2") as made, connected_client(made.node):
            made.backend.respond = answers(is_good, after_s=0.05)
            most: Counter[str] = Counter()

            async def watch() -> None:
                while True:
                    for name in ("requests", "waiting"):
                        most[name] = max(most[name], int((await made.series(f"snorky_hook_{name}"))[""]))
                    await asyncio.sleep(0.2)  # the interval of a scrape

            watching = asyncio.create_task(watch())
            names = [f"{'bad' if number % 10 == 0 else 'user'}{number}" for number in range(CROWD)]
            await asyncio.gather(*map(made.connect, names))
            watching.cancel()
            assert sum(made.statuses.values()) == CROWD and set(made.statuses) == {101, 403, 503}, made.statuses
            assert not any(identity.startswith("bad") for identity in made.admitted)
            counted = await made.counted()
            rejected = await made.series("snorky_handshakes_rejected_total", "reason")
            assert sum(rejected.values()) == made.statuses[403] + made.statuses[503]
            assert (counted["ok"] - 1, counted["refused"]) == (made.statuses[101], made.statuses[403])
            assert counted["busy"] == rejected["hook_busy"] > CROWD / 2
            assert counted.get("failed", 0) == rejected.get("hook_failed", 0)
            assert set(rejected) <= {"hook", "hook_busy", "hook_failed", "authentication"}, rejected
            assert len(made.backend.requests) - 1 >= made.statuses[101] + made.statuses[403] >= CONCURRENCY
            assert made.backend.most_at_once <= CONCURRENCY and most["requests"] <= CONCURRENCY
            # it was full: else no client is refused as busy; a place that is passed on counts as waiting for a moment
            assert most["waiting"] <= QUEUE + CONCURRENCY

            async def is_idle() -> bool:  # the last request may end after its client has its answer
                series = [await made.series(f"snorky_hook_{name}") for name in ("requests", "waiting")]
                return series == [{"": 0.0}] * 2

            await eventually(is_idle, within_s=30, what="no request to the backend is left")


async def test_ten_thousand_equal_questions_are_one_request() -> None:
    with descriptors(CROWD + 1_000):
        # the backend shares its process with the crowd, so it is slow
        async with scene(SNORKY_HOOKS__CONNECT__CACHE_S="600", SNORKY_HOOKS__CONNECT__TIMEOUT_S="30") as made:
            token = hmac_token("ann", exp=time.time() + 600)
            head = handshake_head({"Authorization": f"Bearer {token}"})

            async def connect() -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", made.node.public_port)
                made.writers.append(writer)
                writer.write(head)
                made.statuses[int((await reader.readline()).split()[1])] += 1

            await asyncio.gather(*(connect() for _ in range(CROWD)))
            await connect()  # the others may all have shared the request
            rejected = await made.series("snorky_handshakes_rejected_total", "reason")
            assert set(rejected) <= {"authentication"}, rejected  # a busy node verifies some tokens too late
            assert made.statuses[101] + rejected.get("authentication", 0) == CROWD + 1
            counted = await made.counted()
            assert set(counted) == {"ok", "cached"} and sum(counted.values()) == made.statuses[101] > CROWD / 4
            assert len(made.backend.requests) == 1
