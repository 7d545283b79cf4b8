"""Three nodes behind a real load balancer as shipped: the effect on clients when a node dies or drains."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from redis.asyncio import Redis

from tests.support.clients.ws_client import Crowd, clients
from tests.support.processes.balancer import Backend, Balancer, running_haproxy, running_nginx
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.tools import eventually, free_port

CLIENTS = 300
NODES = 3
CHANNEL = "news"
BACK_WITHIN_S = 15.0  # a client waits 2 s at most in these tests; the rest is for a slow machine
DRAIN_GRACE_S = 4.0

Running = Callable[[Path, Sequence[Backend]], AbstractAsyncContextManager[Balancer]]
BALANCERS = [
    pytest.param(running_nginx, id="nginx", marks=pytest.mark.needs("nginx")),
    pytest.param(running_haproxy, id="haproxy", marks=pytest.mark.needs("haproxy")),
]
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}

pytestmark = pytest.mark.needs("redis-server")


@dataclass
class House:
    """Redis, three nodes, a balancer."""

    redis: RedisProcess
    nodes: list[NodeProcess]
    balancer: Balancer

    async def publish(self, payload: bytes) -> None:
        """Publish as a backend job does, through Redis alone."""
        async with Redis(port=self.redis.port) as client:
            await client.publish(f"snorky:{{pubsub:{CHANNEL}}}", payload)

    async def connections(self) -> list[int]:
        return [int(await node.metric("snorky_connections")) for node in self.nodes if node.is_running]


@asynccontextmanager
async def house(running: Running, directory: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(directory))
        env = {
            "SNORKY_REDIS_URL": redis.url,
            "SNORKY_PUBLIC__TRUSTED_PROXIES": '["127.0.0.1/32"]',
            "SNORKY_PUBLIC__DRAIN_GRACE_S": str(DRAIN_GRACE_S),
        }
        nodes = [NodeProcess(env) for _ in range(NODES)]
        for node in nodes:
            stack.push_async_callback(node.close)
        for node in nodes:
            await node.wait_ready()

        async def all_ready() -> bool:
            return [await node.status("/readyz") for node in nodes] == [200] * NODES

        await eventually(all_ready, within_s=30, what="all nodes are ready")
        backends = [Backend(node.public_port, node.private_port) for node in nodes]
        yield House(redis, nodes, await stack.enter_async_context(running(directory, backends)))


async def settled(crowd: Crowd, there: House, *, within_s: float) -> list[int]:
    """Wait until all clients are subscribed and every connection that nodes count is one of theirs."""
    await crowd.subscribed(within_s=within_s)

    async def counted() -> list[int]:
        counts = await there.connections()
        return counts if sum(counts) == CLIENTS else []

    return await eventually(counted, within_s=within_s, what=f"{CLIENTS} connections on the nodes")


@pytest.mark.parametrize("running", BALANCERS)
async def test_clients_of_a_killed_node_reconnect_to_the_others_whose_clients_are_not_affected(
    running: Running, tmp_path: Path
) -> None:
    async with (
        house(running, tmp_path) as there,
        clients(there.balancer.websocket_url, CLIENTS, channels=[CHANNEL]) as crowd,
    ):
        counts = await settled(crowd, there, within_s=30)
        assert all(count >= CLIENTS / NODES * 0.5 for count in counts), f"not spread: {counts}"
        await there.publish(b'"before"')
        await crowd.received("before", within_s=30)
        assert crowd.drops == 0

        there.nodes[0].kill()
        await there.nodes[0].wait()

        async def dropped() -> bool:
            return crowd.drops >= counts[0]

        await eventually(dropped, within_s=30, what="the killed node's clients notice")
        left = await settled(crowd, there, within_s=BACK_WITHIN_S)
        assert len(left) == NODES - 1
        await there.publish(b'"after"')
        await crowd.received("after", within_s=30)
        assert crowd.drops == counts[0], "a client of another node was disconnected, or one twice"
        assert all(client.drops <= 1 for client in crowd.members)
        undisturbed = [client for client in crowd.members if client.drops == 0]
        assert len(undisturbed) == sum(counts[1:])
        assert all(client.messages[CHANNEL] == ["before", "after"] for client in crowd.members)


@pytest.mark.parametrize("running", BALANCERS)
async def test_clients_of_a_draining_node_are_sent_to_the_others_and_no_handshake_fails(
    running: Running, tmp_path: Path
) -> None:
    async with (
        house(running, tmp_path) as there,
        clients(there.balancer.websocket_url, CLIENTS, channels=[CHANNEL]) as crowd,
    ):
        counts = await settled(crowd, there, within_s=30)
        failed_before = sum(client.failed_attempts for client in crowd.members)
        there.nodes[0].terminate()
        assert await there.nodes[0].wait(within_s=DRAIN_GRACE_S + 10) == 0
        await settled(crowd, there, within_s=BACK_WITHIN_S)
        await there.publish(b'"after"')
        await crowd.received("after", within_s=30)
        assert crowd.drops == counts[0]
        gone = [client for client in crowd.members if client.drops]
        assert [client.close_codes for client in gone] == [[1001]] * counts[0]
        assert sum(client.failed_attempts for client in crowd.members) == failed_before


@pytest.mark.parametrize("running", BALANCERS)
async def test_a_restarted_node_gets_connections_again(running: Running, tmp_path: Path) -> None:
    async with house(running, tmp_path) as there:
        first = there.nodes[0]
        first.kill()
        await first.wait()
        async with clients(there.balancer.websocket_url, 20, channels=[CHANNEL]) as crowd:
            await crowd.subscribed(within_s=30)
            ports = {
                "SNORKY_PUBLIC__PORT": str(first.public_port),
                "SNORKY_PRIVATE__PORT": str(first.private_port),
                "SNORKY_REDIS_URL": there.redis.url,
            }
            async with NodeProcess.running(ports) as again:

                async def has_one() -> bool:
                    async with aiohttp.ClientSession() as session:
                        async with session.ws_connect(there.balancer.websocket_url):
                            return await again.metric("snorky_connections") >= 1

                await eventually(has_one, within_s=30, what="the restarted node gets a connection")


@pytest.mark.needs("haproxy")
async def test_haproxy_keeps_the_clients_of_a_node_that_lost_redis(tmp_path: Path) -> None:
    async with (
        house(running_haproxy, tmp_path) as there,
        clients(there.balancer.websocket_url, 30, channels=[CHANNEL]) as crowd,
    ):
        await crowd.subscribed(within_s=30)
        there.redis.freeze()
        try:

            async def all_marked_down() -> bool:
                return there.balancer.process.log.count(" is DOWN") >= NODES

            await eventually(all_marked_down, within_s=30, what="HAProxy takes every node out")
        finally:
            there.redis.thaw()

        async def all_marked_up() -> bool:
            return there.balancer.process.log.count(" is UP") >= NODES

        await eventually(all_marked_up, within_s=30, what="HAProxy takes every node back")
        await there.publish(b'"after"')
        await crowd.received("after", within_s=30)
        assert crowd.drops == 0


@asynccontextmanager
async def stub(answers: Callable[[str], str]) -> AsyncIterator[tuple[Backend, list[str]]]:
    """A server that records the head of each request and answers with a status. answers: path to status line."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        heads.append(head)
        status = answers(head.split(" ")[1])
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = int(server.sockets[0].getsockname()[1])
        yield Backend(port, port), heads


@pytest.mark.parametrize("running", BALANCERS)
async def test_a_handshake_that_one_node_refuses_is_tried_on_another(running: Running, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        # it drains, and the balancer does not know yet: readiness still answers 200
        full, refused = await stack.enter_async_context(
            stub(lambda path: "503 Service Unavailable" if path == "/ws" else "200 OK")
        )
        good, taken = await stack.enter_async_context(stub(lambda _path: "200 OK"))
        balancer = await stack.enter_async_context(running(tmp_path, [full, good, good]))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        async with asyncio.timeout(30.0):
            for _ in range(6):
                async with session.get(f"http://127.0.0.1:{balancer.port}/ws", headers=HANDSHAKE) as response:
                    assert response.status == 200
    assert [head for head in refused if head.startswith("GET /ws")], "the refusing node was never asked"
    assert len([head for head in taken if head.startswith("GET /ws")]) == 6


@pytest.mark.parametrize("running", BALANCERS)
async def test_a_clients_claims_about_its_address_never_reach_a_node(running: Running, tmp_path: Path) -> None:
    lies = {"X-Forwarded-For": "6.6.6.6", "Forwarded": "for=6.6.6.6", "X-Forwarded-Proto": "gopher"}
    async with AsyncExitStack() as stack:
        node, heads = await stack.enter_async_context(stub(lambda _path: "200 OK"))
        balancer = await stack.enter_async_context(running(tmp_path, [node] * NODES))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        async with session.get(f"http://127.0.0.1:{balancer.port}/ws", headers=lies | HANDSHAKE) as response:
            assert response.status == 200
    (head,) = [each for each in heads if each.startswith("GET /ws")]
    assert "6.6.6.6" not in head
    assert re.findall(r"(?im)^x-forwarded-for: *(\S+)", head) == ["127.0.0.1"]
    assert re.findall(r"(?im)^x-forwarded-proto: *(\S+)", head) == ["http"]
    assert re.findall(r"(?im)^upgrade: *(\S+)", head) == ["websocket"]
    assert [each.lower() for each in re.findall(r"(?im)^connection: *(\S+)", head)] == ["upgrade"]
    assert head.startswith("GET /ws HTTP/1.1\r\n")


@pytest.mark.parametrize("server", ["/sockjs/000", "/pusher/app/shop-key/000"])
@pytest.mark.parametrize("running", BALANCERS)
async def test_no_id_of_a_session_is_written_down(running: Running, tmp_path: Path, server: str) -> None:
    async with AsyncExitStack() as stack:
        node, heads = await stack.enter_async_context(stub(lambda path: "404 Not Found" if "xhr" in path else "200 OK"))
        nobody = Backend(free_port(), free_port())
        balancer = await stack.enter_async_context(running(tmp_path, [node, node, nobody]))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        for name in ("xhr", "xhr_send", "eventsource", "jsonp_send") * 3:
            url = f"http://127.0.0.1:{balancer.port}{server}/s3cret~ID-1/{name}"
            async with session.post(url, data="[]") as response:
                await response.read()
        async with session.get(f"http://127.0.0.1:{balancer.port}/sockjs/info") as response:
            await response.read()

        async def is_logged() -> bool:
            return "GET /sockjs/info" in balancer.process.log.replace('"', "")

        await eventually(is_logged, within_s=30, what="the last request is logged")
        assert [head for head in heads if "s3cret~ID-1" in head], "the node needs it"
        assert balancer.process.log.count(f"{server}/_/xhr_send") == 3
        assert "s3cret" not in balancer.process.log


@pytest.mark.parametrize("running", BALANCERS)
async def test_an_event_reaches_one_node_once_and_its_signature_is_not_written_down(
    running: Running, tmp_path: Path
) -> None:
    paths = ("/apps/shop/events", "/users/ann/terminate_connections")
    async with AsyncExitStack() as stack:
        node, heads = await stack.enter_async_context(stub(lambda _path: "200 OK"))
        busy, refused = await stack.enter_async_context(
            stub(lambda path: "200 OK" if path == "/readyz" else "503 Service Unavailable")
        )
        nobody = Backend(free_port(), free_port())
        balancer = await stack.enter_async_context(running(tmp_path, [node, busy, nobody]))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        statuses: list[int] = []
        for path in paths * 6:
            url = f"http://127.0.0.1:{balancer.port}{path}?auth_signature=s3cret"
            async with session.post(url, data="{}") as response:
                statuses.append(response.status)

        async def are_logged() -> bool:
            return sum(balancer.process.log.count(f"POST {path}") for path in paths) >= len(statuses)

        await eventually(are_logged, within_s=30, what="all requests are logged")
        reached = [len([head for head in each if head.startswith("POST")]) for each in (heads, refused)]
        assert all(reached) and reached == [statuses.count(200), statuses.count(503)] and sum(reached) == len(statuses)
        assert "s3cret" not in balancer.process.log
