"""Two nodes, one real Redis: clients of both nodes and encodings get publications of every path, in order."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import pytest

from tests.support.processes.nodes import GATEWAY, NodeProcess, RedisProcess, clean_environment
from tests.support.processes.tools import program

pytestmark = pytest.mark.needs("redis-server", "redis-cli")

COUNT = 10_000
CHANNEL = "news"
WITHIN_S = 60.0


@dataclass
class Listener:
    """One subscribed client that records what it receives."""

    socket: aiohttp.ClientWebSocketResponse
    encoding: str

    async def call(self, command: str, **params: Any) -> None:
        """Call pubsub; the reply comes among the messages."""
        envelope = {"service": "pubsub", "message": {"command": command, "params": params, "callId": command}}
        if self.encoding == "msgpack":
            await self.socket.send_bytes(msgpack.packb(envelope))
        else:
            await self.socket.send_str(json.dumps(envelope))

    async def receive(self) -> Any:
        """Return the next message, decoded."""
        frame = await self.socket.receive(timeout=WITHIN_S)
        if self.encoding == "msgpack":
            assert frame.type is aiohttp.WSMsgType.BINARY, frame
            return msgpack.unpackb(frame.data)["message"]
        assert frame.type is aiohttp.WSMsgType.TEXT, frame
        return json.loads(frame.data)["message"]

    async def hear(self, count: int) -> list[Any]:
        """Return the next `count` notifications' messages."""
        heard: list[Any] = []
        while len(heard) < count:
            message = await self.receive()
            if message["type"] == "message":
                assert message["channel"] == CHANNEL
                heard.append(message["message"])
            else:
                assert message["type"] == "response", message
        return heard


@dataclass
class Cluster:
    redis: RedisProcess
    nodes: list[NodeProcess]
    listeners: list[Listener]
    session: aiohttp.ClientSession


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Cluster]:
    """Run two nodes, each with a JSON and a MessagePack client subscribed to CHANNEL."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(directory))
        env = {
            "SNORKY_REDIS_URL": redis.url,
            "SNORKY_LIMITS__MESSAGES_PER_S": "1000000",
            "SNORKY_LIMITS__MESSAGES_BURST": "1000000",
            "SNORKY_PUBLIC__DRAIN_GRACE_S": "0",
        }
        nodes = [await stack.enter_async_context(NodeProcess.running(env)) for _ in range(2)]
        session = await stack.enter_async_context(aiohttp.ClientSession())
        listeners = []
        for node in nodes:
            for encoding in ("json", "msgpack"):
                connect = session.ws_connect(node.websocket_url, protocols=[f"snorky.{encoding}"], max_msg_size=0)
                listener = Listener(await stack.enter_async_context(connect), encoding)
                await listener.call("subscribe", channel=CHANNEL)
                assert (await listener.receive())["type"] == "response"
                listeners.append(listener)
        yield Cluster(redis, nodes, listeners, session)


async def run(argv: list[str], stdin: bytes, env: dict[str, str] | None = None) -> bytes:
    """Run a command to its end and return what it printed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=pipe, stdout=pipe, stderr=pipe, env=clean_environment(env)
    )
    output, errors = await process.communicate(stdin)
    assert process.returncode == 0, errors.decode()
    return output


async def by_redis_cli(cluster: Cluster) -> None:
    """PUBLISH as any Redis client does; one call as the documentation has it, the others through one pipe."""
    cli = [program("redis-cli"), "-p", str(cluster.redis.port)]
    assert (await run([*cli, "PUBLISH", "snorky:{pubsub:news}", '{"x":0}'], b"")).strip() == b"2"
    lines = "".join(f"PUBLISH 'snorky:{{pubsub:news}}' '{{\"x\":{number}}}'\n" for number in range(1, COUNT))
    output = await run(cli, lines.encode())
    assert output.split() == [b"2"] * (COUNT - 1)


async def by_backend(cluster: Cluster) -> None:
    """POST /backend: one alone, the others in batches, alternately at both nodes."""

    def envelope(number: int) -> dict[str, Any]:
        params = {"channel": CHANNEL, "message": {"x": number}}
        return {"service": "pubsub_backend", "message": {"command": "publish", "params": params, "callId": number}}

    async def post(body: Any, node: NodeProcess) -> Any:
        async with cluster.session.post(f"http://127.0.0.1:{node.private_port}/backend", json=body) as response:
            assert response.status == 200
            return await response.json()

    reply = await post(envelope(0), cluster.nodes[0])
    assert reply["message"] == {"type": "response", "callId": 0, "data": None}
    for start in range(1, COUNT, 500):
        batch = [envelope(number) for number in range(start, min(COUNT, start + 500))]
        replies = await post(batch, cluster.nodes[start // 500 % 2])
        assert [reply["message"].get("data", "?") for reply in replies] == [None] * len(batch)


async def by_command(cluster: Cluster) -> None:
    """`snorky publish`: one alone, the others from its standard input."""
    env = {"SNORKY_REDIS_URL": cluster.redis.url}
    assert b"2 nodes" in await run([*GATEWAY, "publish", CHANNEL, '{"x": 0}'], b"", env)
    lines = "".join(f'{{"x": {number}}}\n' for number in range(1, COUNT))
    assert str(COUNT - 1).encode() in await run([*GATEWAY, "publish", CHANNEL, "-"], lines.encode(), env)


async def by_client(cluster: Cluster) -> None:
    """A client's publish: without waiting for replies, so that only the gateway keeps the order."""
    publisher = cluster.listeners[-1]
    for number in range(COUNT):
        await publisher.call("publish", channel=CHANNEL, message={"x": number})


@pytest.mark.parametrize("publish", [by_redis_cli, by_backend, by_command, by_client])
async def test_published_messages_reach_clients_of_both_nodes_in_order(
    tmp_path: Path, publish: Callable[[Cluster], Awaitable[None]]
) -> None:
    async with cluster(tmp_path) as running, asyncio.timeout(2 * WITHIN_S):
        hearing = [asyncio.create_task(listener.hear(COUNT)) for listener in running.listeners]
        await publish(running)
        for heard in await asyncio.gather(*hearing):
            assert heard == [{"x": number} for number in range(COUNT)]
        # and nothing came twice: a last message is the next that each client receives
        await run(
            [program("redis-cli"), "-p", str(running.redis.port), "PUBLISH", "snorky:{pubsub:news}", '"end"'], b""
        )
        assert await asyncio.gather(*(listener.hear(1) for listener in running.listeners)) == [["end"]] * 4
        for node in running.nodes:
            assert await node.metric("snorky_drops_total") == 0


async def test_channels_that_are_no_strings_are_named_alike_everywhere(tmp_path: Path) -> None:
    """Key order, 1 and 1.0 do not matter; the Redis name is the documented one."""
    async with cluster(tmp_path) as running, asyncio.timeout(WITHIN_S):
        listener = running.listeners[0]
        await listener.call("subscribe", channel={"b": 1.0, "a": [True, "ü"]})
        assert (await listener.receive())["type"] == "response"
        name = 'snorky:{pubsub:~{"a":[true,"ü"],"b":1}}'
        cli = [program("redis-cli"), "-p", str(running.redis.port), "PUBLISH", name, "7"]
        assert (await run(cli, b"")).strip() == b"1"
        heard = await listener.receive()
        assert heard == {"type": "message", "channel": {"b": 1.0, "a": [True, "ü"]}, "message": 7}
