"""clients/js in Node on real nodes: whatever becomes of nodes and connections, each message comes once and in order."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
from redis.asyncio import Redis

from snorky.aio import Publisher
from tests.support.balancer import Backend, running_nginx
from tests.support.nodes import GATEWAY, NodeProcess, RedisProcess
from tests.support.proxy import FaultProxy
from tests.support.tools import ROOT, eventually, program

JS = ROOT / "clients" / "js"
CROWD = JS / "support" / "crowd.js"
pytestmark = [
    pytest.mark.needs("redis-server", "nginx", "node"),
    pytest.mark.skipif(not (JS / "node_modules" / "ws").exists(), reason="needs ws: npm --prefix clients/js ci"),
]

CLIENTS = 60
CHANNELS = 6
ROUNDS = 1  # of the rolling restart
PACE_S = 0.01  # between two rounds; each publishes to every channel
DEADLINE_S = 30.0
SECRET = "any-secret-of-32-bytes-or-more-will-do"
CONFIG = """
[services.pubsub]
class = "services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "kept:*"
history = 5000
[services.auth]
class = "services.auth:AuthService"
"""


class Crowd:
    """Clients in one process of Node. What they tell comes in order.

    closes: of connections, as they came. tokens: that they have asked for.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.closes: list[dict[str, Any]] = []
        self.tokens = 0

    async def event(self, kind: str) -> dict[str, Any]:
        """Wait for what they tell next of this kind. Raises AssertionError: they ended, or are silent."""
        assert self._process.stdout is not None
        while True:
            async with asyncio.timeout(DEADLINE_S):
                line = await self._process.stdout.readline()
            assert line, f"the clients ended while {kind} was awaited"
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "close":
                self.closes.append(event)
            self.tokens += event["event"] == "token"
            if event["event"] == kind:
                return event

    async def ask(self, order: Mapping[str, Any], kind: str) -> dict[str, Any]:
        """Tell them to do something and wait for what comes of it."""
        self.tell(order)
        return await self.event(kind)

    async def judge(self, count: int) -> None:
        """Wait until every client has heard the numbers below count, each once and in order, and no gap."""
        report: dict[str, Any] = {}

        async def have_all_heard() -> bool:
            nonlocal report
            report = await self.ask({"report": True}, "report")
            return all(len(heard) >= count for heard in report["heard"])

        with suppress(AssertionError):
            await eventually(have_all_heard, within_s=DEADLINE_S, what="all clients have heard everything")
        wrong = {
            number: (state, sorted(set(range(count)) - set(heard))[:3], len(heard) - len(set(heard)))
            for number, (heard, state) in enumerate(zip(report["heard"], report["states"], strict=True))
            if heard != list(range(count))
        }
        assert not wrong, f"of {count} messages, by client: state, first ones lost, how many doubled: {wrong}"
        assert report["gaps"] == 0

    def tell(self, order: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")


@asynccontextmanager
async def crowd(url: str, *, count: int, encoding: str = "json", token: str = "") -> AsyncIterator[Crowd]:
    """Run clients that recover until the block ends; all have subscribed when it begins."""
    arguments = [str(CROWD), url, str(count), str(CHANNELS), encoding, *([token] if token else [])]
    process = await asyncio.create_subprocess_exec(
        program("node"), *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24
    )
    try:
        clients = Crowd(process)
        await clients.event("subscribed")
        yield clients
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass
class House:
    """Redis, nodes, and where clients connect: nginx in front of several nodes."""

    redis: RedisProcess
    nodes: list[NodeProcess]
    url: str
    settings: Mapping[str, str]
    stack: AsyncExitStack

    async def start(self, config: Path, *, ports: Mapping[str, str] | None = None) -> NodeProcess:
        """Start a node; `ready` is owed."""
        node = NodeProcess({**self.settings, **(ports or {})}, argv=[*GATEWAY, "serve", "--config", str(config)])
        self.stack.push_async_callback(node.close)
        await node.wait_ready()
        return node

    async def restart(self, index: int) -> None:
        """Drain a node, and start another in its place; return when that is ready."""
        node = self.nodes[index]
        node.terminate()
        assert await node.wait() == 0
        ports = {"SNORKY_PUBLIC__PORT": str(node.public_port), "SNORKY_PRIVATE__PORT": str(node.private_port)}
        self.nodes[index] = await self.start(Path(node.argv[-1]), ports=ports)
        await self.ready()

    async def ready(self) -> None:
        """Wait until all nodes are."""

        async def all_ready() -> bool:
            return {await node.status("/readyz") for node in self.nodes} == {200}

        await eventually(all_ready, within_s=20, what="all nodes are ready")


@asynccontextmanager
async def house(directory: Path, *, count: int, env: Mapping[str, str] | None = None) -> AsyncIterator[House]:
    config = directory / "snorky.toml"
    config.write_text(CONFIG)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(directory))
        settings = {
            "SNORKY_REDIS_URL": redis.url,
            "SNORKY_PUBLIC__TRUSTED_PROXIES": '["127.0.0.1/32"]',
            "SNORKY_PUBLIC__DRAIN_GRACE_S": "3",
            **(env or {}),
        }
        there = House(redis, [], "", settings, stack)
        there.nodes += await asyncio.gather(*[there.start(config) for _ in range(count)])
        await there.ready()
        if count == 1:
            there.url = there.nodes[0].websocket_url
        else:
            backends = [Backend(node.public_port, node.private_port) for node in there.nodes]
            there.url = (await stack.enter_async_context(running_nginx(directory, backends))).websocket_url
        yield there


class Load:
    """Publishes numbers to every channel, the same to each. `count`: rounds that Redis has."""

    def __init__(self, redis_url: str) -> None:
        self.count = 0
        self._url = redis_url
        self._is_over = False
        self._reached: dict[int, asyncio.Event] = {}

    async def run(self) -> None:
        async with Publisher(self._url, timeout_s=DEADLINE_S, concurrency_max=CHANNELS) as publisher:
            while not self._is_over:
                channels = [f"kept:{channel}" for channel in range(CHANNELS)]
                await asyncio.gather(*[publisher.publish(channel, self.count) for channel in channels])
                self.count += 1
                if self.count in self._reached:
                    self._reached[self.count].set()
                await asyncio.sleep(PACE_S)

    async def more(self, rounds: int) -> None:
        """Wait until so many more rounds were published."""
        async with asyncio.timeout(60):
            await self._reached.setdefault(self.count + rounds, asyncio.Event()).wait()

    def end(self) -> None:
        self._is_over = True


@asynccontextmanager
async def load(redis: RedisProcess, *crowds: Crowd) -> AsyncIterator[Load]:
    """Publish while the block runs; then every client must have heard everything, once and in order, and no gap."""
    at_work = Load(redis.url)
    running = asyncio.ensure_future(at_work.run())
    try:
        await at_work.more(50)
        yield at_work
        await at_work.more(50)
        at_work.end()
        await running
    finally:
        running.cancel()
        await asyncio.wait([running])
    for clients in crowds:
        await clients.judge(at_work.count)


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_connections_that_are_cut_again_and_again_cost_nothing(tmp_path: Path, encoding: str) -> None:
    async with house(tmp_path, count=1) as there:
        async with FaultProxy("127.0.0.1", there.nodes[0].public_port) as proxy:
            url = f"ws://127.0.0.1:{proxy.port}/ws"
            async with crowd(url, count=CLIENTS, encoding=encoding) as clients:
                async with load(there.redis, clients) as at_work:
                    for _ in range(5):
                        proxy.cut()
                        await at_work.more(40)
                assert proxy.connections >= 3 * CLIENTS


async def test_killed_node_costs_its_clients_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, count=3) as there, crowd(there.url, count=CLIENTS) as clients:
        async with load(there.redis, clients) as at_work:
            there.nodes[0].kill()
            await there.nodes[0].wait()
            await at_work.more(100)
        assert {close["code"] for close in clients.closes} == {1006}


async def test_drained_node_is_left_before_it_closes_anybody(tmp_path: Path) -> None:
    env = {"SNORKY_PUBLIC__DRAIN_GRACE_S": "8"}  # of which each client has 2 s to move
    async with house(tmp_path, count=3, env=env) as there, crowd(there.url, count=CLIENTS) as clients:
        async with load(there.redis, clients) as at_work:
            leaving = int(await there.nodes[0].metric("snorky_connections"))
            there.nodes[0].terminate()
            assert await there.nodes[0].wait() == 0
            await at_work.more(50)
        report = await clients.ask({"report": True}, "report")
        assert leaving > 0
        assert (report["moves"], report["opens"]) == (leaving, CLIENTS + leaving)
        assert clients.closes == []


async def test_publications_of_a_known_client_are_taken_once_over_cut_connections(tmp_path: Path) -> None:
    now_s = time.time()
    token = jwt.encode({"sub": "ann", "iat": now_s, "exp": now_s + 300}, SECRET, "HS256")
    count = 600
    async with house(tmp_path, count=1, env={"SNORKY_AUTH__HMAC_SECRET": SECRET}) as there:
        async with FaultProxy("127.0.0.1", there.nodes[0].public_port) as proxy:
            url = f"ws://127.0.0.1:{proxy.port}/ws"
            async with crowd(url, count=1, token=token) as clients:
                proxy.delay_s = 0.02  # so that there is something on its way when it is cut
                for first in range(0, count, 150):
                    published = asyncio.ensure_future(
                        clients.ask({"publish": ["kept:0", first, first + 150]}, "published")
                    )
                    await asyncio.wait([published], timeout=0.05)
                    proxy.cut()
                    assert (await published)["outcomes"] == {"done": 150}

                async def have_heard() -> list[int]:
                    heard: list[int] = (await clients.ask({"report": True}, "report"))["heard"][0]
                    return heard if len(heard) >= count else []

                heard = await eventually(have_heard, within_s=DEADLINE_S, what="all that was published is heard")
                assert Counter(heard) == Counter(range(count))
            assert proxy.connections > 2


async def test_rolling_restart_of_all_nodes_costs_nothing(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        there = await stack.enter_async_context(house(tmp_path, count=3))
        one, other = [
            await stack.enter_async_context(crowd(there.url, count=CLIENTS, encoding=encoding))
            for encoding in ("json", "msgpack")
        ]
        async with load(there.redis, one, other) as at_work:
            for index in list(range(3)) * ROUNDS:
                await there.restart(index)
                await at_work.more(30)
        # On a busy machine a new connection may take longer than a node waits; that costs nothing but a reconnect.
        assert {close["code"] for close in one.closes + other.closes} <= {1001}


async def test_what_redis_lost_is_told_as_a_gap_and_the_channel_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path, count=1) as there, crowd(there.url, count=CHANNELS) as clients:
        async with Publisher(there.redis.url) as publisher:
            await publisher.publish("kept:0", "before")
            async with Redis.from_url(there.redis.url) as redis:
                await redis.flushall()
            await publisher.publish("kept:0", "after")

            async def is_told() -> bool:
                report = await clients.ask({"report": True}, "report")
                return report["heard"][0][-1:] == ["after"] and bool(report["gaps"])

            await eventually(is_told, within_s=DEADLINE_S, what="the gap is told, and what is behind it is heard")
        assert clients.closes == []


async def test_token_is_replaced_before_it_expires_and_the_connection_stays(tmp_path: Path) -> None:
    env = {"SNORKY_AUTH__HMAC_SECRET": SECRET, "SNORKY_AUTH__LEEWAY_S": "0"}
    async with house(tmp_path, count=1, env=env) as there:
        async with crowd(there.url, count=1, token=f"hs256:{SECRET}:3") as clients:
            while clients.tokens < 4:  # so the first two have expired
                await clients.event("token")
            published = await clients.ask({"publish": ["kept:0", 0, 1]}, "published")
            assert published["outcomes"] == {"done": 1}
            assert (await clients.ask({"report": True}, "report"))["opens"] == 1
        assert clients.closes == []


async def test_readme_of_the_client_works_as_it_stands(tmp_path: Path) -> None:
    token = jwt.encode({"sub": "ann", "iat": time.time(), "exp": time.time() + 60}, SECRET, "HS256")
    (block,) = re.findall(r"```js\n(.*?)```", (JS / "README.md").read_text(), re.DOTALL)
    async with house(tmp_path, count=1, env={"SNORKY_AUTH__HMAC_SECRET": SECRET}) as there:
        here = {
            '"./snorky.js"': json.dumps(str(JS / "snorky.js")),
            "wss://example.org/ws": there.url,
            'fetch("/token").then((response) => response.text())': json.dumps(token),
            '"my_service", "my_command"': '"gateway", "info"',
            "{ a: 1 }": "{}",
            '"news"': '"kept:news"',
            "news.close();": "await heard; news.close();",
        }
        for there_it_says, here_it_is in here.items():
            assert there_it_says in block
            block = block.replace(there_it_says, here_it_is)
        program_text = f"""
            import {{ WebSocket }} from {json.dumps(str(JS / "node_modules" / "ws" / "wrapper.mjs"))};
            globalThis.WebSocket ??= WebSocket;
            const log = console.log;
            const heard = new Promise((resolve) => (console.log = (...words) => resolve(log(...words))));
            {block}
            client.close();
        """
        (tmp_path / "readme.mjs").write_text(program_text)
        process = await asyncio.create_subprocess_exec(
            program("node"), str(tmp_path / "readme.mjs"), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
        assert (process.returncode, output.decode()) == (0, "{ headline: '...' } 1\n")


async def test_bad_token_is_the_end_of_a_client(tmp_path: Path) -> None:
    async with house(tmp_path, count=1, env={"SNORKY_AUTH__HMAC_SECRET": SECRET}) as there:
        with pytest.raises(AssertionError, match="ended"):
            async with crowd(there.url, count=1, token="made-up"):
                raise RuntimeError("it was let in")
