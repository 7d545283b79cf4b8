"""The real sockjs-client, unmodified: against one node, and through nginx round robin over three without stickiness."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from redis.asyncio import Redis

from tests.support.clients.sockjs_client import TRANSPORTS, SockJSClient, needs_sockjs_client, sockjs_client
from tests.support.processes.balancer import (
    Backend,
    Balancer,
    nginx_command,
    nginx_config,
    running_balancer,
    running_haproxy,
)
from tests.support.processes.nodes import NodeProcess, RedisProcess
from tests.support.processes.tools import eventually, free_port
from tests.support.scenarios.tokens import OPEN_PUBSUB

NODES = 3
Running = Callable[[Path, Sequence[Backend]], AbstractAsyncContextManager[Balancer]]

pytestmark = [pytest.mark.needs("node", "redis-server"), needs_sockjs_client]
RECEIVERS = {"xhr-streaming": "xhr_streaming", "eventsource": "eventsource", "xhr-polling": "xhr"}
T = TypeVar("T")


@dataclass
class House:
    """Redis, nodes, and where clients connect."""

    redis: RedisProcess
    nodes: list[NodeProcess]
    url: str
    balancer: Balancer | None = None

    async def publish(self, *values: object, channel: str = "news") -> None:
        """Publish as a backend job does, through Redis alone."""
        async with Redis(port=self.redis.port) as client:
            for value in values:
                await client.publish(f"snorky:{{pubsub:{channel}}}", json.dumps(value))

    async def connections(self) -> int:
        return int(sum([await node.metric("snorky_connections") for node in self.nodes if node.is_running]))

    async def gone(self) -> None:
        """Wait until no node has a connection."""

        async def none() -> bool:
            return await self.connections() == 0

        await eventually(none, within_s=12, what="the nodes have closed the clients' sessions")


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
    """Run the shipped nginx, but round robin and in one process, because each process has its own order."""
    port = free_port()
    config = nginx_config(directory, port, backends)
    text, count = re.subn(r"\n\s*least_conn;[^\n]*", "", config.read_text())  # without the rest it is round robin
    assert count == 1
    config.write_text(text.replace("worker_processes auto;", "worker_processes 1;"))
    async with running_balancer(nginx_command(config), port) as balancer:
        yield balancer


ONE = pytest.param(1, id="one node")
THREE = pytest.param(NODES, id="three nodes by nginx", marks=pytest.mark.needs("nginx"))
each_house = pytest.mark.parametrize("nodes", [ONE, THREE])


def asked(balancer: Balancer, receiver: str = r"[a-z_]+", *, since: int = 0) -> set[str]:
    """Return the nodes that got this request of a receiving session. since: a place in the balancer's log."""
    lines = [line for line in balancer.process.log[since:].splitlines() if re.search(r'"\w+ /sockjs/\d+/', line)]
    found = {match[1] for line in lines if (match := re.search(rf'/sockjs/\d+/(\w+)/{receiver}"', line))}
    mine = [line for line in lines if re.search(r"/sockjs/\d+/(\w+)/", line)[1] in found]  # type: ignore[index]
    return {match[1] for line in mine if (match := re.search(r'" \d+ (127\.0\.0\.1:\d+)', line))}


async def have_all_asked(balancer: Balancer) -> bool:
    """Return whether all nodes got requests of each receiver; the balancer logs them after it has answered."""
    return all(len(asked(balancer, receiver)) == NODES for receiver in RECEIVERS.values())


async def by_each_transport(
    url: str, do: Callable[[SockJSClient, str], Coroutine[Any, Any, T]], transports: Sequence[str] = TRANSPORTS
) -> list[T]:
    """Let a client of each transport do the same, all at once. Raises the first error."""

    async def one(transport: str) -> T:
        async with sockjs_client(url, transport) as client:
            try:
                await subscribed(client, transport)
                return await do(client, transport)
            except AssertionError as error:
                raise AssertionError(f"{transport}: {error}") from error

    return await asyncio.gather(*map(one, transports))


async def subscribed(client: SockJSClient, transport: str) -> None:
    """Wait until it is connected, and subscribe to a channel named after its transport."""
    await client.opened(transport)
    answer = await client.call("pubsub", "subscribe", channel=transport)
    assert answer == {"type": "response", "callId": 1, "data": None}


@each_house
async def test_the_real_client_talks_by_every_transport(nodes: int, tmp_path: Path) -> None:
    values: list[object] = [0, "é\u2028\u200d\u0000😀", {"a": ["</script>", "%41", '"']}, "x" * 30_000]

    async def talk(client: SockJSClient, transport: str) -> None:
        await there.publish(*values, channel=transport)
        got = [(await client.message())["message"] for _ in values]
        assert [each["message"] for each in got] == values
        answer = await client.call("pubsub", "publish", 2, channel="other", message="é😀")
        assert answer == {"type": "response", "callId": 2, "data": None}
        client.close()
        assert (await client.closed())[0] == 1000

    async with house(tmp_path, nodes) as there:
        for transport in TRANSPORTS:  # one by one, so that no other requests change the round robin order
            await by_each_transport(there.url, talk, [transport])
        await there.gone()
        if there.balancer is not None:
            await eventually(partial(have_all_asked, there.balancer), within_s=30, what="requests reach all nodes")


@each_house
async def test_nothing_is_lost_or_out_of_order(nodes: int, tmp_path: Path) -> None:
    count, size = 600, 400  # more than fits into two streaming responses

    async def hear(client: SockJSClient, transport: str) -> None:
        values = ([number, "x" * size] for number in range(count))
        publishing = asyncio.create_task(there.publish(*values, channel=transport))
        got = [(await client.message())["message"]["message"][0] for _ in range(count)]
        await publishing
        assert got == list(range(count))
        for number in range(50):
            client.send("pubsub", {"command": "publish", "params": {"channel": transport, "message": [number]}})
        echoes: list[int] = []
        while len(echoes) < 50:
            message = (await client.message())["message"]
            if message["type"] == "message":
                echoes.append(message["message"][0])
        assert echoes == list(range(50))

    async with house(tmp_path, nodes) as there:
        await by_each_transport(there.url, hear)


@each_house
async def test_sessions_of_killed_clients_end(nodes: int, tmp_path: Path) -> None:
    async def count(_client: SockJSClient, _transport: str) -> None:
        await met.wait()

    met = asyncio.Barrier(len(TRANSPORTS))
    async with house(tmp_path, nodes) as there:
        await by_each_transport(there.url, count)  # all there at once, and killed
        await there.gone()


@pytest.mark.needs("nginx")
async def test_each_drain_affects_only_the_nodes_own_clients(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        there = await stack.enter_async_context(house(tmp_path, NODES))
        clients: dict[str, SockJSClient] = {}
        owners: dict[str, NodeProcess] = {}
        for transport in TRANSPORTS:
            before = [await node.metric("snorky_connections") for node in there.nodes]
            clients[transport] = await stack.enter_async_context(sockjs_client(there.url, transport))
            await subscribed(clients[transport], transport)
            after = [await node.metric("snorky_connections") for node in there.nodes]
            (owners[transport],) = [
                node for node, old, new in zip(there.nodes, before, after, strict=True) if new > old
            ]
        for node in there.nodes:
            node.terminate()
            for transport in [name for name, owner in owners.items() if owner is node]:
                moving = await clients[transport].message()
                assert (moving["service"], moving["message"]["type"]) == ("gateway", "moving"), transport
                assert await clients[transport].closed() == (1001, "Going away"), transport
                del owners[transport]
            assert await node.wait(10) == 0
            for transport in owners:
                await there.publish(node.pid, channel=transport)
                assert (await clients[transport].message())["message"]["message"] == node.pid, transport


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("transport", RECEIVERS)
async def test_a_node_that_is_killed_takes_its_sessions_along(transport: str, tmp_path: Path) -> None:
    """In Node, sockjs-client waits for the end of a streaming response; after a cut there is none."""
    async with house(tmp_path, NODES) as there, sockjs_client(there.url, transport) as client:
        await subscribed(client, transport)
        (owner,) = [node for node in there.nodes if await node.metric("snorky_connections")]
        owner.kill()
        if transport == "xhr-streaming":
            await eventually(lambda: is_gone(there), within_s=20, what="the other nodes know that the node has ended")
            client.send("gateway", {"command": "info"})  # its messages are refused: now it knows
        assert (await client.closed(25))[0] == 1006


async def is_gone(there: House) -> bool:
    """Return whether a session of a killed node has ended."""
    async with Redis(port=there.redis.port) as redis:
        return not [key for key in await redis.keys("*names*sockjs*") if await redis.hlen(key)]


@pytest.mark.needs("nginx")
async def test_a_pause_of_redis_leaves_sessions_whole_or_ends_them(tmp_path: Path) -> None:
    """Six seconds: shorter than the nodes' timeout for each other, longer than a client may be away."""

    async def wait(client: SockJSClient, transport: str) -> None:
        await met.wait()
        await thawed.wait()
        await eventually(heard(there, client, transport), within_s=15, what=f"{transport} continues")

    async def talk(client: SockJSClient, transport: str) -> list[int]:
        await met.wait()
        for number in range(30):
            client.send("gateway", {"command": "info", "callId": number})
            await asyncio.sleep(0.1)  # spread over the pause, like a user's requests
        await thawed.wait()
        answers: list[int] = []
        while len(answers) < 30:
            event = await client.event(25)
            if event["event"] == "close":
                assert event["code"] in (1002, 1006), event
                return answers
            answers.append(json.loads(event["data"])["message"]["callId"])
        return answers

    met, thawed = asyncio.Barrier(2 * len(RECEIVERS) + 1), asyncio.Event()
    async with house(tmp_path, NODES) as there:
        waiting = asyncio.create_task(by_each_transport(there.url, wait, tuple(RECEIVERS)))
        talking = asyncio.create_task(by_each_transport(there.url, talk, tuple(RECEIVERS)))
        await met.wait()
        there.redis.freeze()
        await asyncio.sleep(6.0)  # the fault itself
        there.redis.thaw()
        thawed.set()
        await waiting
        for answers in await talking:
            assert answers == list(range(len(answers))), "a hole"
        async with sockjs_client(there.url, "xhr-polling") as client:  # and the next request is served
            await subscribed(client, "xhr-polling")


def heard(there: House, client: SockJSClient, transport: str) -> Callable[[], Coroutine[Any, Any, bool]]:
    """Return whether a publication reaches a client; nodes may still be reconnecting to Redis."""

    async def ask() -> bool:
        await there.publish("after", channel=transport)
        try:
            event = await client.event(0.5)
        except AssertionError:
            return False
        # it may just have sent its next poll; 2010: its node does not know yet that the request before it has ended
        assert event["event"] == "message" or event["code"] in (1002, 1006, 2010), event
        return True

    return ask


async def test_a_stream_ends_when_the_node_of_its_session_is_killed(tmp_path: Path) -> None:
    """By hand: sockjs-client waits in Node for the end of a response; after a cut there is none."""
    async with house(tmp_path, NODES) as there, aiohttp.ClientSession() as http:
        owner, other, third = (f"http://127.0.0.1:{node.public_port}/sockjs/0/session" for node in there.nodes)
        async with http.post(f"{owner}/xhr") as opened:
            assert await opened.read() == b"o\n"
        async with http.post(f"{other}/xhr_streaming") as stream:
            assert await stream.content.readline() == b"h" * 2048 + b"\n"
            there.nodes[0].kill()
            async with asyncio.timeout(30.0):
                assert await stream.content.read() == b""
        async with http.post(f"{third}/xhr_send", data='["{}"]') as sent:
            assert sent.status == 404


@pytest.mark.needs("haproxy")
async def test_haproxy_does_not_time_out_receivers(tmp_path: Path) -> None:
    async def wait(client: SockJSClient, transport: str) -> None:
        with pytest.raises(AssertionError, match="nothing within"):
            await client.event(within_s=7)  # longer than HAProxy waits for a handshake's answer
        await there.publish("after", channel=transport)
        assert (await client.message())["message"]["message"] == "after"
        await met.wait()
        assert await there.connections() == 2
        await met.wait()

    met = asyncio.Barrier(2)
    async with house(tmp_path, 2, running=running_haproxy) as there:
        await by_each_transport(there.url, wait, ("xhr-streaming", "xhr-polling"))


HOOK = "async def who(request):\n    return request.cookies.get('session')\n"


async def test_a_session_that_an_attacker_chose_is_of_no_use_to_him_on_any_node(tmp_path: Path) -> None:
    """A link leads the victim's browser to a session with a known id; the attacker, on another node, has no cookie."""
    (tmp_path / "hook.py").write_text(HOOK)
    call = {"command": "subscribe", "params": {"channel": "private"}, "callId": 1}
    subscribe = json.dumps([json.dumps({"service": "pubsub", "message": call})])
    victim = {"Cookie": "session=ann"}
    followed = {**victim, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "cross-site"}
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(tmp_path))
        env = {
            "SNORKY_REDIS_URL": redis.url,
            "PYTHONPATH": str(tmp_path),
            "SNORKY_AUTH__IDENTIFY_HOOK": "hook:who",
            **OPEN_PUBSUB,
        }
        nodes = [await stack.enter_async_context(NodeProcess.running(env)) for _ in range(2)]

        async def are_ready() -> bool:
            return [await node.status("/readyz") for node in nodes] == [200, 200]

        await eventually(are_ready, within_s=20, what="both nodes are ready")
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def ask(node: int, verb: str, name: str, headers: Mapping[str, str], body: str = "") -> tuple[int, str]:
            url = f"http://127.0.0.1:{nodes[node].public_port}/sockjs/000/chosen/{name}"
            async with session.request(verb, url, headers=headers, data=body or None) as response:
                return response.status, await response.text()

        for headers in (followed, {**followed, "Referer": "https://evil.example.org/"}):
            assert (await ask(0, "GET", "htmlfile?c=x", headers))[0] == 403
        # even if the victim had opened it
        assert await ask(0, "POST", "xhr", victim) == (200, "o\n")
        for node in (0, 1):
            for headers in ({}, {"Cookie": "session=mallory"}):
                assert await ask(node, "POST", "xhr_send", headers, subscribe) == (404, "")
                assert (await ask(node, "POST", "xhr", headers))[0] == 404
        assert await ask(1, "POST", "xhr_send", victim, subscribe) == (204, "")
        status, answered = await ask(1, "POST", "xhr", victim)
        assert status == 200 and json.loads(json.loads(answered[1:])[0])["message"]["type"] == "response"
        assert "chosen" not in nodes[0].log + nodes[1].log
        refused = [
            await node.metric('snorky_refusals_total{door="sockjs",reason="credential_differs"}') for node in nodes
        ]
        assert refused == [4, 4]
