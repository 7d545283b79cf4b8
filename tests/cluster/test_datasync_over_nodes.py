"""DataSync with a real Redis: authorized, published and acquired on three nodes, in this process and as processes."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import pytest

from snorky.gateway import Node, ServiceRegistry, Settings
from snorky.gateway.runtime.node import running_node
from snorky.services.datasync import DataSyncBackend, DataSyncService
from tests.support.fakes.fake_wire import UNLIMITED
from tests.support.fakes.memory_cluster import Resident
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import eventually
from tests.support.scenarios.dealers import AllTasks, Players, TasksOfList
from tests.support.servers.redis_servers import REAL_KINDS, RedisServer

NODES = 3
DELTAS = 10_000
BATCH = 25
ALL = {"dealer": "AllTasks", "query": None}


class Subscriber(Protocol):
    """A client that acquired."""

    @property
    def numbers(self) -> list[int]:
        """Of the deltas that it got, in order."""


class Cluster(Protocol):
    """Three nodes, however they run."""

    async def backend(self, number: int, command: str, **params: Any) -> Any:
        """Call the private port of a node; returns the data of the answer, or fails."""

    async def acquire(self, number: int, token: str) -> Subscriber:
        """Acquire on a node."""


def task(number: int) -> dict[str, Any]:
    return {"type": "insert", "model": "Task", "data": {"n": number, "list": number % 7}}


async def race(cluster: Cluster, *, clients: int, seed: int, disturb: Callable[[int], Awaitable[None]]) -> None:
    """Publish on all nodes in turn; meanwhile clients connect, each authorized on a node and acquiring on another.

    Each must have all deltas after its authorization: none lost, none twice, in order.
    """
    chance = random.Random(seed)
    published = 0
    progress = asyncio.Condition()

    async def publish() -> None:
        nonlocal published
        for first in range(0, DELTAS, BATCH):
            batch = [task(number) for number in range(first, first + BATCH)]
            await cluster.backend(first // BATCH % NODES, "publishDeltas", deltas=batch)
            await disturb(first)
            async with progress:
                published = first + BATCH
                progress.notify_all()

    async def wait_for(count: int) -> None:
        async with progress:
            await progress.wait_for(lambda: published >= count)

    async def come(authorize_at: int, acquire_at: int) -> tuple[int, int, Subscriber]:
        await wait_for(authorize_at)
        before = published
        token = await cluster.backend(chance.randrange(NODES), "authorizeSubscription", items=[ALL])
        after = published + BATCH
        await wait_for(acquire_at)
        return before, after, await cluster.acquire(chance.randrange(NODES), token)

    async with asyncio.TaskGroup() as group:
        comings = []
        for _ in range(clients):
            authorize_at = chance.randrange(DELTAS - 1000)
            acquire_at = authorize_at + chance.choice((0, BATCH, 500, chance.randrange(4000)))
            comings.append(group.create_task(come(authorize_at, min(acquire_at, DELTAS))))
        group.create_task(publish())
    for coming in comings:
        before, after, subscriber = coming.result()

        async def is_complete(subscriber: Subscriber = subscriber) -> bool:
            return bool(subscriber.numbers) and subscriber.numbers[-1] == DELTAS - 1

        await eventually(is_complete, within_s=30, what="the last delta has arrived")
        numbers = subscriber.numbers
        assert before <= numbers[0] <= after, (before, numbers[0], after)
        assert numbers == list(range(numbers[0], DELTAS))


async def nothing(_first: int) -> None:
    """No fault."""


# -- in this process ----------------------------------------------------------------------------------------------


class LocalSubscriber:
    def __init__(self, resident: Resident) -> None:
        self.resident = resident

    @property
    def numbers(self) -> list[int]:
        return [each["delta"]["data"]["n"] for each in self.resident.notifications]


class LocalCluster:
    """Nodes in this process."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.public: list[ServiceRegistry] = []
        self.private: list[ServiceRegistry] = []

    async def backend(self, number: int, command: str, **params: Any) -> Any:
        caller = Resident(self.nodes[number], self.private[number], None)
        answer = await caller.ask("datasync_backend", command, **params)
        caller.leave()
        assert not str(answer).startswith("Error"), answer
        return answer

    async def acquire(self, number: int, token: str) -> LocalSubscriber:
        """Acquire by one connection, which retries while Redis does not answer."""
        resident = Resident(self.nodes[number], self.public[number], None)
        for _ in range(20):
            answer = await resident.ask("datasync", "acquireSubscription", token=token)
            if answer != "Error: Temporarily unavailable":
                break
        assert answer is None, answer
        return LocalSubscriber(resident)


@asynccontextmanager
async def local_cluster(url: str) -> AsyncIterator[LocalCluster]:
    cluster = LocalCluster()
    settings = Settings(redis_url=url, limits=UNLIMITED)
    async with AsyncExitStack() as stack:
        for _ in range(NODES):
            public = ServiceRegistry([DataSyncService(dealers=[AllTasks, TasksOfList, Players])])
            private = ServiceRegistry([DataSyncBackend()])
            node = await stack.enter_async_context(running_node(public, private, settings=settings))
            cluster.nodes.append(node)
            cluster.public.append(public)
            cluster.private.append(private)

        async def are_ready() -> bool:
            return all(node.is_ready for node in cluster.nodes)

        await eventually(are_ready, within_s=30, what="all nodes receive")
        yield cluster
        for node in cluster.nodes:
            for connection in node.connections:
                node.disconnect(connection, 1001)


@pytest.mark.parametrize("kind", REAL_KINDS)
async def test_ten_thousand_deltas_race_acquisitions_on_three_nodes(kind: str, tmp_path: Path) -> None:
    async with RedisServer(kind, tmp_path) as server, local_cluster(server.url) as cluster:
        await race(cluster, clients=60, seed=1, disturb=nothing)


async def test_deltas_survive_cut_connections_to_redis(tmp_path: Path) -> None:
    """Unanswered publications are sent again; missed ones are read from history."""
    async with RedisServer("redis", tmp_path) as server, local_cluster(server.url) as cluster:
        client = server.client()

        async def disturb(first: int) -> None:
            if first % 1000 == 500 and first < DELTAS - 1000:
                kind = "pubsub" if first % 2000 == 500 else "normal"
                await client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

        cluster.backend = patient(cluster.backend)  # type: ignore[method-assign]
        await race(cluster, clients=20, seed=2, disturb=disturb)
        await client.aclose()


@pytest.mark.parametrize("lost", ["read", "take"])
async def test_an_acquisition_whose_answer_from_redis_was_lost_may_be_tried_again(lost: str, tmp_path: Path) -> None:
    async with (
        RedisServer("redis", tmp_path) as server,
        FaultProxy("127.0.0.1", server.port) as proxy,
        local_cluster(proxy.url) as cluster,
    ):
        await cluster.acquire(
            1, await cluster.backend(0, "authorizeSubscription", items=[ALL])
        )  # Redis has the script now
        token = await cluster.backend(0, "authorizeSubscription", items=[ALL])
        await cluster.backend(1, "publishDeltas", deltas=[task(0)])
        client, other = (Resident(cluster.nodes[number], cluster.public[number], None) for number in (1, 2))
        answers: list[Any] = []

        async def is_answered() -> bool:
            answers.append(await client.ask("datasync", "acquireSubscription", token=token))
            return answers[-1] != "Error: Temporarily unavailable"

        proxy.lose_next_reply(to=token.encode() + (b"}:taken" if lost == "take" else b""))
        await eventually(is_answered, within_s=30, what="redis answers again")
        assert proxy.lost_bytes > 0
        assert answers[0] == "Error: Temporarily unavailable" and answers[-1] is None
        assert [each["delta"]["data"]["n"] for each in client.notifications] == [0]
        for late in (client, other):
            assert await late.ask("datasync", "acquireSubscription", token=token) == "Error: No such subscription"


def patient(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Retry authorizations; a publication is never answered with an error."""

    async def attempt(number: int, what: str, **params: Any) -> Any:
        for _ in range(20):
            try:
                return await ask(number, what, **params)
            except AssertionError as error:
                if what == "publishDeltas" or "Temporarily unavailable" not in str(error):
                    raise
        raise AssertionError("unavailable for too long")

    return attempt


# -- processes ----------------------------------------------------------------------------------------------------


class RemoteSubscriber:
    """A WebSocket that records the numbers of deltas."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.numbers: list[int] = []
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self._socket = socket
        self.reader = asyncio.create_task(self._read())

    async def ask(self, command: str, **params: Any) -> Any:
        message = {"command": command, "params": params, "callId": 1}
        await self._socket.send_str(json.dumps({"service": "datasync", "message": message}))
        return await asyncio.wait_for(self.answers.get(), 20.0)

    async def _read(self) -> None:
        async for frame in self._socket:
            message = json.loads(frame.data)["message"]
            if message["type"] == "delta":
                self.numbers.append(message["delta"]["data"]["n"])
            elif "callId" in message:
                self.answers.put_nowait(message)


class RemoteCluster:
    """Node processes."""

    def __init__(self, nodes: list[NodeProcess], session: aiohttp.ClientSession) -> None:
        self._nodes = nodes
        self._session = session

    async def backend(self, number: int, command: str, **params: Any) -> Any:
        url = f"http://127.0.0.1:{self._nodes[number].private_port}/backend"
        envelope = {"service": "datasync_backend", "message": {"command": command, "params": params, "callId": 1}}
        async with self._session.post(url, json=envelope) as response:
            message = (await response.json())["message"]
        assert message["type"] == "response", message
        return message["data"]

    async def acquire(self, number: int, token: str) -> RemoteSubscriber:
        subscriber = RemoteSubscriber(await self._session.ws_connect(self._nodes[number].websocket_url))
        answer = await subscriber.ask("acquireSubscription", token=token)
        assert answer["type"] == "response", answer
        return subscriber


@pytest.mark.needs("redis-server")
async def test_ten_thousand_deltas_race_acquisitions_over_node_processes(tmp_path: Path) -> None:
    config = tmp_path / "snorky.toml"
    config.write_text(
        "[limits]\nmessages_per_s = 10000.0\nmessages_burst = 100000\n"
        '[services.datasync]\nclass = "snorky.services.datasync:DataSyncService"\n'
        'dealers = ["tests.support.scenarios.dealers:AllTasks", "tests.support.scenarios.dealers:Players"]\n'
    )
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(tmp_path))
        env = {"SNORKY_CONFIG": str(config), "SNORKY_REDIS_URL": redis.url}
        nodes = [NodeProcess(env) for _ in range(NODES)]
        for node in nodes:
            stack.push_async_callback(node.close)
        for node in nodes:
            await node.wait_ready()
        session = await stack.enter_async_context(aiohttp.ClientSession())
        try:
            await race(RemoteCluster(nodes, session), clients=30, seed=3, disturb=nothing)
        except BaseException as error:
            error.add_note("\n".join(node.log[-2000:] for node in nodes))
            raise
