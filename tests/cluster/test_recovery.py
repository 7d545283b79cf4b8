"""Recovery with a real Redis: three nodes, load, faults; every reader's journal is checked.

Readers stay on a node, or move from node to node with their last position. Numbers are published under idempotency
keys, and retried until Redis has them; so each must be received once, in order.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from snorky.gateway import BrokerUnavailable, ChannelRule, History, Node, ServiceRegistry, Settings
from snorky.gateway.runtime.node import running_node
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import UNLIMITED
from tests.support.fakes.memory_cluster import Resident
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import RedisServer

NODES = 3
CHANNELS = [f"kept:{number}" for number in range(12)]
SIZE = 20_000
PACE_S = 0.004  # between two publications of a channel: 3,000 a second in all, if the machine is fast enough

pytestmark = pytest.mark.needs("redis-server")


class Reader:
    """A client that keeps a journal of one channel: numbers, and "gap"."""

    def __init__(self, cluster: "Cluster", channel: str, number: int) -> None:
        self._cluster = cluster
        self.channel = channel
        self._client: Resident | None = None
        self._number = number
        self._read: list[Any] = []  # journal of former connections
        self._since: str | None = None
        self._was_closed = False

    @property
    def was_closed(self) -> bool:
        """True if a node ended one of its connections."""
        return self._was_closed or (self._client is not None and bool(self._client.wire.closes))

    async def come(self) -> None:
        """Connect to a node, and receive missed messages."""
        client = self._cluster.client(self._number)
        recover = self._since or True
        reply = await client.ask("pubsub", "subscribe", channel=self.channel, recover=recover)
        assert isinstance(reply, dict), reply
        if not reply["recovered"]:
            self._read.append("gap")
        self._read += [each["message"] for each in reply["messages"]]
        self._since = reply["position"]
        self._client = client

    async def move(self) -> None:
        """Disconnect, and connect to another node; retry until it accepts."""
        self.leave()
        self._number += 1
        async with asyncio.timeout(20.0):
            while True:
                try:
                    return await self.come()
                except AssertionError as error:
                    assert "Temporarily unavailable" in str(error), error

    def leave(self) -> None:
        """Disconnect."""
        if self._client is None:
            return
        client, self._client = self._client, None
        self._read += _noted(client)
        self._was_closed = self._was_closed or bool(client.wire.closes)
        positions = [each["position"] for each in client.notifications if "position" in each]
        self._since = positions[-1] if positions else self._since
        client.leave()

    @property
    def journal(self) -> list[Any]:
        return self._read + (_noted(self._client) if self._client is not None else [])


def _noted(client: Resident) -> list[Any]:
    return ["gap" if each["type"] == "gap" else each["message"] for each in client.notifications]


class Cluster:
    """Nodes in this process, and a publisher on each."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.registries: list[ServiceRegistry] = []
        self.published = dict.fromkeys(CHANNELS, 0)
        self.delay_s: list[float] = []
        self.readers: list[Reader] = []

    def client(self, number: int) -> Resident:
        return Resident(self.nodes[number % NODES], self.registries[number % NODES], None)

    async def reader(self, channel: str, number: int) -> Reader:
        reader = Reader(self, channel, number)
        await reader.come()
        self.readers.append(reader)
        return reader

    async def publish(self, channel: str, number: int) -> None:
        """Publish until Redis has it."""
        service = self.registries[number % NODES]["pubsub"]
        async with asyncio.timeout(60.0):
            while True:
                try:
                    await service.topics.publish(channel, number, history=History(3600.0, SIZE), once=str(number))
                except BrokerUnavailable:
                    continue
                break
        self.published[channel] = number + 1

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Publish on all channels while the block lasts."""
        is_over = asyncio.Event()

        async def feed(channel: str) -> None:
            while not is_over.is_set():
                await self.publish(channel, self.published[channel])
                await asyncio.sleep(PACE_S)

        async with asyncio.TaskGroup() as group:
            for channel in CHANNELS:
                group.create_task(feed(channel))
            yield
            is_over.set()

    async def until_published(self, count: int) -> None:
        """Wait for that many more publications."""
        target = sum(self.published.values()) + count

        async def is_reached() -> bool:
            return sum(self.published.values()) >= target

        await eventually(is_reached, within_s=30.0, what=f"{count} publications")

    async def caught_up(self, *, within_s: float = 30.0) -> float:
        """Wait until every reader has its channel's last number; returns how long that took."""
        begun_s = perf_counter()

        async def are_there() -> bool:
            return all(each.journal[-1:] == [self.published[each.channel] - 1] for each in self.readers)

        await eventually(are_there, within_s=within_s, what="every reader has the last number")
        return perf_counter() - begun_s

    def nothing_is_wrong(self) -> None:
        """All readers have everything, once, in order, on one connection."""
        for reader in self.readers:
            journal, count = reader.journal, self.published[reader.channel]
            assert journal == list(range(count)), _what_is_wrong(journal, count)
        self.nobody_was_closed()

    def nobody_was_closed(self) -> None:
        for reader in self.readers:
            assert not reader.was_closed


def _what_is_wrong(journal: list[Any], count: int) -> str:
    numbers = [each for each in journal if each != "gap"]
    lost = sorted(set(range(count)) - set(numbers))
    twice = len(numbers) - len(set(numbers))
    order = sum(one >= other for one, other in pairwise(numbers))
    return f"lost {lost[:10]} ({len(lost)}), twice {twice}, out of order {order}, gaps {journal.count('gap')}"


@asynccontextmanager
async def cluster_of(url: str) -> AsyncIterator[Cluster]:
    cluster = Cluster()
    settings = Settings(redis_url=url, limits=UNLIMITED)
    async with AsyncExitStack() as stack:
        for _ in range(NODES):
            rule = ChannelRule("kept:*", history=SIZE, history_ttl_s=3600.0)
            registry = ServiceRegistry([PubSubService(channels=[rule])])
            cluster.nodes.append(await stack.enter_async_context(running_node(registry, settings=settings)))
            cluster.registries.append(registry)

        async def are_ready() -> bool:
            return all(node.is_ready for node in cluster.nodes)

        await eventually(are_ready, within_s=30, what="all nodes receive")
        yield cluster
        for node in cluster.nodes:
            for connection in node.connections:
                node.disconnect(connection, 1001)


@asynccontextmanager
async def stage(tmp_path: Path, *, staying: int = 2) -> AsyncIterator[tuple[RedisServer, Cluster, Any]]:
    async with RedisServer("redis", tmp_path) as server, cluster_of(server.url) as cluster:
        client = server.client()
        for channel in CHANNELS:
            for number in range(NODES * staying):
                await cluster.reader(channel, number)
        yield server, cluster, client
        await client.aclose()


async def wander(cluster: Cluster, readers: list[Reader], until: asyncio.Event, seed: int) -> None:
    chance = random.Random(seed)
    while not until.is_set():
        await chance.choice(readers).move()
        await asyncio.sleep(0.002)


@asynccontextmanager
async def wandering(cluster: Cluster, seed: int) -> AsyncIterator[None]:
    """Let a reader of each channel change nodes all the time, while the block runs."""
    readers = [await cluster.reader(channel, number) for number, channel in enumerate(CHANNELS)]
    is_over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(wander(cluster, readers, is_over, seed))
        yield
        is_over.set()


# -- faults ---------------------------------------------------------------------------------------------------------


async def test_killed_subscriptions_are_repaired_without_a_gap(tmp_path: Path) -> None:
    async with stage(tmp_path) as (_, cluster, client):
        async with wandering(cluster, seed=1), cluster.load():
            for _ in range(25):
                await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                await cluster.until_published(150)
        assert await cluster.caught_up() < 5.0
        cluster.nothing_is_wrong()


async def test_last_publications_before_a_pause_arrive_within_a_second_of_a_kill(tmp_path: Path) -> None:
    """No later publication would reveal the hole."""
    async with stage(tmp_path, staying=1) as (_, cluster, client):
        for _ in range(10):
            await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.gather(*(cluster.publish(channel, cluster.published[channel]) for channel in CHANNELS))
            assert await cluster.caught_up(within_s=5.0) < 1.0
        cluster.nothing_is_wrong()


async def test_stalled_redis_loses_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path) as (server, cluster, _):

        async def are_unverified() -> bool:
            return all(node.is_redis_unverified for node in cluster.nodes)

        async with wandering(cluster, seed=2), cluster.load():
            await cluster.until_published(500)
            server.freeze()
            try:
                await eventually(are_unverified, within_s=30, what="the nodes know that they receive nothing")
            finally:
                server.thaw()
            await cluster.until_published(500)
        await cluster.caught_up()
        cluster.nothing_is_wrong()


Lose = Callable[[RedisServer, Any], Awaitable[Any]]


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(lambda _server, client: client.flushall(), id="FLUSHALL"),
        pytest.param(lambda server, _client: server.restart(), id="restarted empty"),
    ],
)
async def test_lost_state_is_one_reported_gap_per_channel(lose: Lose, tmp_path: Path) -> None:
    async with stage(tmp_path) as (server, cluster, client):
        async with cluster.load():
            await cluster.until_published(500)
        await cluster.caught_up()
        before = dict(cluster.published)
        await lose(server, client)
        async with cluster.load():
            await cluster.until_published(500)
        await cluster.caught_up()
        for reader in cluster.readers:
            expected = [
                *range(before[reader.channel]),
                "gap",
                *range(before[reader.channel], cluster.published[reader.channel]),
            ]
            assert reader.journal == expected, _what_is_wrong(reader.journal, cluster.published[reader.channel])
        cluster.nobody_was_closed()


async def test_offsets_reused_by_a_lagging_replica_are_one_reported_gap(tmp_path: Path) -> None:
    """Epoch and offsets match; only the tags show that the histories differ."""
    async with stage(tmp_path) as (_, cluster, client):
        async with cluster.load():
            await cluster.until_published(300)
        states = [name for name in await client.keys("*") if name.endswith((b":history", b":position"))]
        assert len(states) == 2 * len(CHANNELS)
        replica = {name: await client.dump(name) for name in states}
        async with cluster.load():
            await cluster.until_published(300)
        await cluster.caught_up()
        before = dict(cluster.published)
        for name, dump in replica.items():
            await client.restore(name, 3_600_000, dump, replace=True)
        async with cluster.load():
            await cluster.until_published(600)
        await cluster.caught_up()
        for reader in cluster.readers:
            first, count = before[reader.channel], cluster.published[reader.channel]
            assert reader.journal == [*range(first), "gap", *range(first, count)], _what_is_wrong(reader.journal, count)
        cluster.nobody_was_closed()


async def test_thousand_clients_resume_at_once(tmp_path: Path) -> None:
    async with stage(tmp_path, staying=1) as (_, cluster, _client):
        async with cluster.load():
            more = [await cluster.reader(CHANNELS[number % 12], number) for number in range(1000)]
            for reader in more:
                reader.leave()
            await cluster.until_published(300)
            await asyncio.gather(*(reader.move() for reader in more))
        await cluster.caught_up()
        cluster.nobody_was_closed()
        for reader in cluster.readers[36:]:
            journal, count = reader.journal, cluster.published[reader.channel]
            assert journal == list(range(journal[0], count)), _what_is_wrong(journal, count)
