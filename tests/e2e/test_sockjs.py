"""The real sockjs-client, unmodified: against one node, and through nginx round robin over three without stickiness."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from redis.asyncio import Redis

from tests.support.balancer import Backend, Balancer, nginx_command, nginx_config, running_balancer, running_haproxy
from tests.support.nodes import NodeProcess, RedisProcess
from tests.support.sockjs_client import TRANSPORTS, SockJSClient, needs_sockjs_client, sockjs_client
from tests.support.tools import eventually, free_port

NODES = 3
Running = Callable[[Path, Sequence[Backend]], AbstractAsyncContextManager[Balancer]]

pytestmark = [pytest.mark.needs("node", "redis-server"), needs_sockjs_client]
each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


@dataclass
class House:
    """Redis, nodes, and where clients connect."""

    redis: RedisProcess
    nodes: list[NodeProcess]
    url: str
    balancer: Balancer | None = None

    async def publish(self, *values: object) -> None:
        """Publish as a backend job does, through Redis alone."""
        async with Redis(port=self.redis.port) as client:
            for value in values:
                await client.publish("snorky:{pubsub:news}", json.dumps(value))

    async def connections(self) -> int:
        return int(sum([await node.metric("snorky_connections") for node in self.nodes if node.is_running]))

    async def gone(self) -> None:
        """Wait until no node has a connection."""

        async def none() -> bool:
            return await self.connections() == 0

        await eventually(none, within_s=12, what="the nodes let the clients go")


@asynccontextmanager
async def house(
    directory: Path, nodes: int, settings: Mapping[str, str] | None = None, *, running: Running | None = None
) -> AsyncIterator[House]:
    """Run one; with several nodes behind a balancer, nginx's requests each going to the next node.

    settings: more of the environment. running: another balancer, as shipped.
    """
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(directory))
        env = {
            "SNORKY_REDIS_URL": redis.url,
            "SNORKY_PUBLIC__TRUSTED_PROXIES": '["127.0.0.1/32"]',
            "SNORKY_PUBLIC__DRAIN_GRACE_S": "3",
            **(settings or {}),
        }
        processes = [NodeProcess(env) for _ in range(nodes)]
        for node in processes:
            stack.push_async_callback(node.close)
        for node in processes:
            await node.wait_ready()

        async def all_ready() -> bool:
            return [await node.status("/readyz") for node in processes] == [200] * nodes

        await eventually(all_ready, within_s=10, what="all nodes are ready")
        if nodes == 1:
            yield House(redis, processes, f"http://127.0.0.1:{processes[0].public_port}/sockjs")
            return
        backends = [Backend(node.public_port, node.private_port) for node in processes]
        balancer = await stack.enter_async_context((running or round_robin)(directory, backends))
        yield House(redis, processes, f"http://127.0.0.1:{balancer.port}/sockjs", balancer)


@asynccontextmanager
async def round_robin(directory: Path, backends: Sequence[Backend]) -> AsyncIterator[Balancer]:
    """Run the shipped nginx, but in turns, and one process, for each has its own turn."""
    port = free_port()
    config = nginx_config(directory, port, backends)
    text, count = re.subn(r"\n\s*least_conn;[^\n]*", "", config.read_text())  # what is left is round robin
    assert count == 1
    config.write_text(text.replace("worker_processes auto;", "worker_processes 1;"))
    async with running_balancer(nginx_command(config), port) as balancer:
        yield balancer


ONE = pytest.param(1, id="one node")
THREE = pytest.param(NODES, id="three nodes by nginx", marks=pytest.mark.needs("nginx"))
each_house = pytest.mark.parametrize("nodes", [ONE, THREE])


def asked(balancer: Balancer, transport: str) -> set[str]:
    """Tell which nodes were asked for a session by receivers and senders."""
    lines = [line for line in balancer.process.log.splitlines() if re.search(r'"\w+ /sockjs/\d+/', line)]
    return {match[1] for line in lines if (match := re.search(r'" \d+ (127\.0\.0\.1:\d+)', line))}


async def subscribed(client: SockJSClient, transport: str) -> None:
    await client.opened(transport)
    assert await client.call("pubsub", "subscribe", channel="news") == {"type": "response", "callId": 1, "data": None}


@each_house
@each_transport
async def test_the_real_client_talks_by_every_transport(transport: str, nodes: int, tmp_path: Path) -> None:
    async with house(tmp_path, nodes) as there:
        async with sockjs_client(there.url, transport) as client:
            await subscribed(client, transport)
            values: list[object] = [0, "é\u2028\u200d\u0000😀", {"a": ["</script>", "%41", '"']}, "x" * 30_000]
            for value in values:
                await there.publish(value)
            got = [(await client.message())["message"] for _ in values]
            assert [each["message"] for each in got] == values
            assert await client.call("pubsub", "publish", 2, channel="other", message="é😀") == {
                "type": "response",
                "callId": 2,
                "data": None,
            }
            client.close()
            assert (await client.closed())[0] == 1000
        await there.gone()
        if there.balancer is not None and transport != "websocket":
            assert len(asked(there.balancer, transport)) == NODES


@each_house
@each_transport
async def test_nothing_is_lost_or_out_of_order(transport: str, nodes: int, tmp_path: Path) -> None:
    count, size = 600, 400  # more than two streaming responses take
    async with house(tmp_path, nodes) as there, sockjs_client(there.url, transport) as client:
        await subscribed(client, transport)
        publishing = asyncio.create_task(there.publish(*([number, "x" * size] for number in range(count))))
        got = [(await client.message())["message"]["message"][0] for _ in range(count)]
        await publishing
        assert got == list(range(count))
        for number in range(50):
            client.send("pubsub", {"command": "publish", "params": {"channel": "news", "message": [number]}})
        echoes: list[int] = []
        while len(echoes) < 50:
            message = (await client.message())["message"]
            if message["type"] == "message":
                echoes.append(message["message"][0])
        assert echoes == list(range(50))


@each_house
@each_transport
async def test_a_client_that_is_killed_is_let_go(transport: str, nodes: int, tmp_path: Path) -> None:
    async with house(tmp_path, nodes) as there:
        async with sockjs_client(there.url, transport) as client:
            await subscribed(client, transport)
            assert await there.connections() == 1
        await there.gone()


@pytest.mark.needs("nginx")
@each_transport
async def test_a_node_that_drains_says_so(transport: str, tmp_path: Path) -> None:
    async with house(tmp_path, NODES) as there, sockjs_client(there.url, transport) as client:
        await subscribed(client, transport)
        (owner,) = [node for node in there.nodes if await node.metric("snorky_connections")]
        owner.terminate()
        moving = await client.message()
        assert (moving["service"], moving["message"]["type"]) == ("gateway", "moving")
        assert await client.closed() == (1001, "Going away")
        assert await owner.wait(10) == 0


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("transport", [each for each in TRANSPORTS if each != "websocket"])
async def test_a_node_that_only_passes_on_drains_unnoticed(transport: str, tmp_path: Path) -> None:
    async with house(tmp_path, NODES) as there, sockjs_client(there.url, transport) as client:
        await subscribed(client, transport)
        others = [node for node in there.nodes if not await node.metric("snorky_connections")]
        others[0].terminate()
        assert await others[0].wait(10) == 0
        await there.publish("after")
        assert (await client.message())["message"]["message"] == "after"


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("transport", ["eventsource", "xhr-polling"])  # see the next one
async def test_a_node_that_is_killed_takes_its_sessions_along(transport: str, tmp_path: Path) -> None:
    async with house(tmp_path, NODES) as there, sockjs_client(there.url, transport) as client:
        await subscribed(client, transport)
        (owner,) = [node for node in there.nodes if await node.metric("snorky_connections")]
        owner.kill()
        assert (await client.closed(25))[0] == 1006


async def test_a_stream_ends_when_the_node_of_its_session_is_killed(tmp_path: Path) -> None:
    """By hand: sockjs-client waits in Node for the end of a response, which one that is cut never has."""
    async with house(tmp_path, NODES) as there, aiohttp.ClientSession() as http:
        owner, other, third = (f"http://127.0.0.1:{node.public_port}/sockjs/0/session" for node in there.nodes)
        async with http.post(f"{owner}/xhr") as opened:
            assert await opened.read() == b"o\n"
        async with http.post(f"{other}/xhr_streaming") as stream:
            assert await stream.content.readline() == b"h" * 2048 + b"\n"
            there.nodes[0].kill()
            async with asyncio.timeout(5):
                assert await stream.content.read() == b""
        async with http.post(f"{third}/xhr_send", data='["{}"]') as sent:
            assert sent.status == 404


@pytest.mark.needs("haproxy")
@pytest.mark.parametrize("transport", ["xhr-streaming", "xhr-polling"])
async def test_haproxy_lets_receivers_wait(transport: str, tmp_path: Path) -> None:
    async with house(tmp_path, 2, running=running_haproxy) as there, sockjs_client(there.url, transport) as client:
        await subscribed(client, transport)
        with pytest.raises(AssertionError, match="nothing within"):
            await client.event(within_s=7)  # longer than HAProxy waits for a handshake's answer
        await there.publish("after")
        assert (await client.message())["message"]["message"] == "after"
        assert await there.connections() == 1
