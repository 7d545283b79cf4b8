"""snorky.aio.Client on real nodes: whatever becomes of nodes and connections, nothing is lost or doubled."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest

from snorky import Publication, SnorkyError
from snorky.aio import Client, Gap, Message, Publisher, Recovered
from snorky.errors import ConnectionEnded
from tests.support.balancer import Backend, running_nginx
from tests.support.nodes import GATEWAY, NodeProcess, RedisProcess
from tests.support.proxy import FaultProxy
from tests.support.tools import eventually

pytestmark = pytest.mark.needs("redis-server", "nginx")

CLIENTS = 60
CHANNELS = 6
PACE_S = 0.01  # between two rounds: each round publishes to every channel, so 600 messages/s at most
SECRET = "any-secret-of-32-bytes-or-more-will-do"
RULES = """
[services.pubsub]
class = "services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "kept:*"
history = 5000
[services.chat]
class = "services.chat:ChatService"
[services.auth]
class = "services.auth:AuthService"
"""


@dataclass
class Reader:
    """One client and what it has heard of one channel."""

    client: Client
    channel: str
    heard: list[int] = field(default_factory=list)
    unrecovered: list[Any] = field(default_factory=list)

    async def read(self) -> None:
        """Take events until cancelled."""
        async for event in self.client.subscribe(self.channel, recover=True):
            if isinstance(event, Message):
                self.heard.append(event.data)
            elif isinstance(event, Gap) or not event.is_recovered:
                self.unrecovered.append(event)


@dataclass
class House:
    """Redis, nodes, where clients connect (nginx in front of several nodes), and load."""

    redis: RedisProcess
    nodes: list[NodeProcess]
    url: str
    start: Callable[[dict[str, str]], NodeProcess]  # one more node, with settings besides
    published: int = 0

    async def replace(self, number: int) -> None:
        """Drain a node, and start another one on its ports."""
        old = self.nodes[number]
        old.terminate()
        assert await old.wait() == 0
        ports = {"SNORKY_PUBLIC__PORT": str(old.public_port), "SNORKY_PRIVATE__PORT": str(old.private_port)}
        self.nodes[number] = self.start(ports)
        await self.nodes[number].wait_ready()

    async def publish(self) -> None:
        """Publish numbers to every channel until cancelled."""
        async with Publisher(self.redis.url, timeout_s=30, concurrency_max=CHANNELS) as publisher:
            while True:
                number = self.published
                await asyncio.gather(*[publisher.publish(f"kept:{each}", number) for each in range(CHANNELS)])
                self.published = number + 1
                await asyncio.sleep(PACE_S)


@asynccontextmanager
async def house(directory: Path, *, count: int = 3, env: dict[str, str] | None = None) -> AsyncIterator[House]:
    config = directory / "snorky.toml"
    config.write_text(RULES)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(directory))
        settings = {
            "SNORKY_REDIS_URL": redis.url,
            "SNORKY_PUBLIC__TRUSTED_PROXIES": '["127.0.0.1/32"]',
            "SNORKY_PUBLIC__DRAIN_GRACE_S": "3",
            **(env or {}),
        }

        def start(more: dict[str, str]) -> NodeProcess:
            node = NodeProcess({**settings, **more}, argv=[*GATEWAY, "serve", "--config", str(config)])
            stack.push_async_callback(node.close)
            return node

        nodes = [start({}) for _ in range(count)]
        for node in nodes:
            await node.wait_ready()

        async def all_ready() -> bool:
            return [await node.status("/readyz") for node in nodes] == [200] * count

        await eventually(all_ready, within_s=20, what="all nodes are ready")
        if count == 1:
            yield House(redis, nodes, nodes[0].websocket_url, start)
            return
        backends = [Backend(node.public_port, node.private_port) for node in nodes]
        balancer = await stack.enter_async_context(running_nginx(directory, backends))
        yield House(redis, nodes, balancer.websocket_url, start)


@asynccontextmanager
async def load(there: House, url: str) -> AsyncIterator[list[Reader]]:
    """Have readers and a publisher at work; at the end every reader must have heard everything, once and in order."""
    async with AsyncExitStack() as stack:
        readers = []
        for number in range(CLIENTS):
            client = await stack.enter_async_context(Client(url, backoff_base_s=0.2, backoff_max_s=2.0))
            readers.append(Reader(client, f"kept:{number % CHANNELS}"))
        tasks = [asyncio.ensure_future(reader.read()) for reader in readers]

        async def all_subscribed() -> bool:
            counts = [await node.metric("snorky_subscriptions") for node in there.nodes if node.is_running]
            return sum(counts) == CLIENTS

        await eventually(all_subscribed, within_s=30, what="all readers have subscribed")
        publishing = asyncio.ensure_future(there.publish())
        await reached(there, 50)
        yield readers
        await reached(there, there.published + 50)
        publishing.cancel()
        await asyncio.wait([publishing])
        assert publishing.cancelled(), publishing.exception()

        async def all_heard() -> bool:
            return all(len(reader.heard) >= there.published for reader in readers)

        try:
            await eventually(all_heard, within_s=20, what="all readers have heard everything")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for reader in readers:
            last = reader.heard[-1]  # one more than `published` may have come, of the round that was cancelled
            assert reader.heard == list(range(last + 1)), "lost, doubled or out of order"
            assert reader.unrecovered == []


async def reached(there: House, count: int) -> None:
    """Wait until so many have been published to each channel."""

    async def is_reached() -> bool:
        return there.published >= count

    await eventually(is_reached, within_s=60, what=f"{count} publications")


async def test_killed_node_costs_its_clients_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as there, load(there, there.url):
        there.nodes[0].kill()
        await there.nodes[0].wait()
        await reached(there, there.published + 100)


async def test_drained_node_is_left_before_it_goes_and_nobody_notices(tmp_path: Path) -> None:
    async with house(tmp_path) as there, load(there, there.url):
        there.nodes[0].terminate()
        assert await there.nodes[0].wait() == 0
        await reached(there, there.published + 50)


async def test_all_nodes_replaced_one_after_the_other_cost_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as there, load(there, there.url):
        for number in range(len(there.nodes)):
            await there.replace(number)


async def test_connections_that_are_cut_again_and_again_cost_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, count=1) as there:
        async with FaultProxy("127.0.0.1", there.nodes[0].public_port) as proxy:
            async with load(there, f"ws://127.0.0.1:{proxy.port}/ws"):
                for _ in range(5):
                    proxy.cut()
                    await reached(there, there.published + 40)
            assert proxy.connections >= 3 * CLIENTS


async def test_publishes_of_a_client_with_a_token_are_taken_once_over_cut_connections(tmp_path: Path) -> None:
    def token() -> str:
        now_s = time.time()
        return jwt.encode({"sub": "ann", "iat": now_s, "exp": now_s + 60}, SECRET, "HS256")

    env = {"SNORKY_AUTH__HMAC_SECRET": SECRET}
    async with house(tmp_path, count=1, env=env) as there:
        async with FaultProxy("127.0.0.1", there.nodes[0].public_port) as proxy:
            options: dict[str, Any] = {"token": token, "backoff_base_s": 0.05, "backoff_max_s": 0.2}
            async with Client(f"ws://127.0.0.1:{proxy.port}/ws", **options) as client:
                async with client.subscribe("kept:mine", recover=True) as mine:
                    proxy.delay_s = 0.02  # so that there is something on its way when it is cut
                    for first in range(0, 600, 150):
                        batch = range(first, first + 150)
                        publishes = [asyncio.ensure_future(client.publish("kept:mine", n)) for n in batch]
                        await asyncio.wait(publishes, timeout=0.05)
                        proxy.cut()
                        await asyncio.gather(*publishes)
                    heard = []
                    async with asyncio.timeout(20):
                        while len(heard) < 600:
                            event = await anext(mine)
                            if isinstance(event, Message):
                                heard.append(event.data)
                            else:
                                assert isinstance(event, Recovered) and event.is_recovered
                    assert sorted(heard) == list(range(600))
                    assert proxy.connections > 2


async def test_gateway_says_what_it_does_not_let(tmp_path: Path) -> None:
    async with house(tmp_path, count=1, env={"SNORKY_AUTH__HMAC_SECRET": SECRET}) as there:
        async with Client(there.url) as client:
            with pytest.raises(SnorkyError) as refused:
                await client.call("chat", "join", channel="lobby")
            assert refused.value.code == "not_authenticated"
            info = await client.call("gateway", "info")
            assert info["encoding"] == "json"
        for bearer in ("header", "subprotocol"):
            async with Client(there.url, token="made.up.token", bearer=bearer) as client:  # type: ignore[arg-type]
                with pytest.raises(ConnectionEnded, match="4501"):
                    async with asyncio.timeout(10), client.subscribe("news") as news:
                        await anext(news)


async def test_burst_that_is_larger_than_any_buffer_is_read_to_its_end(tmp_path: Path) -> None:
    async with house(tmp_path, count=1) as there, Publisher(there.redis.url) as publisher:
        async with Client(there.url, events_max=100) as client, client.subscribe("kept:b", recover=True) as burst:
            numbers = range(4_000)
            publishing = asyncio.ensure_future(publisher.publish_many(Publication("kept:b", n) for n in numbers))
            async with asyncio.timeout(30):
                heard = [await anext(burst) for _ in numbers]
            assert [event.data for event in heard if isinstance(event, Message)] == list(numbers)
            await publishing


async def test_history_that_is_gone_is_told(tmp_path: Path) -> None:
    async with house(tmp_path, count=1) as there, Publisher(there.redis.url) as publisher:
        first = await publisher.publish("kept:a", 1)
        await publisher.publish("kept:a", 2)
        position = str(first.position)
        async with Client(there.url) as client, client.subscribe("kept:a", recover=position) as there_still:
            assert (await anext(there_still)) == Message("kept:a", 2, 2, there_still.position)
        async with Client(there.url) as client:
            async with client.subscribe("kept:a", recover="0:1:0") as gone:
                event = await anext(gone)
                assert isinstance(event, Recovered) and not event.is_recovered
                await publisher.publish("kept:a", 3)
                assert (await anext(gone)) == Message("kept:a", 3, 3, gone.position)
