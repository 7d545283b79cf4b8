"""Centrifuge clients without a WebSocket: streams on one node, commands on any, the end, pages, limits."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from snorky.client.aio import Publisher
from snorky.gateway.http.protocols.centrifuge.client import CentrifugeClient
from tests.support.processes.tools import eventually
from tests.support.scenarios.protocol_nodes import CHANNEL, Nodes, token_of

DEADLINE_S = 30.0
ORIGIN = "https://app.example.org"


@pytest.fixture
async def url(nodes: Nodes) -> str:
    return await nodes.start(SNORKY_PUBLIC__ALLOWED_ORIGINS=json.dumps([ORIGIN]))


class Stream:
    """A client. heard: all replies and pushes, in order."""

    def __init__(self, response: aiohttp.ClientResponse, http: aiohttp.ClientSession, *, is_sse: bool) -> None:
        self.response = response
        self.session = self.node = ""
        self._http = http
        self._is_sse = is_sse

    async def next(self) -> Any:
        """Wait for the next message; None = the stream has ended."""
        async with asyncio.timeout(DEADLINE_S):
            while line := await self.response.content.readline():
                text = line.decode().strip().removeprefix("data: " if self._is_sse else "")
                if text:
                    return json.loads(text)
        return None

    async def until(self, key: str) -> Any:
        """Wait for the next message with a key; returns its value."""
        async with asyncio.timeout(DEADLINE_S / 2):  # pings alone must not keep it waiting
            while (message := await self.next()) is not None:
                if key in message:
                    return message[key]
        raise AssertionError(f"the stream has ended without {key}")

    async def send(self, url: str, *commands: Any, **changed: str) -> int:
        """Send commands to any node; returns the status."""
        data = "\n".join(map(json.dumps, commands))
        body = {"session": self.session, "node": self.node, "data": data, **changed}
        async with self._http.post(f"{url}/emulation", json=body) as response:
            return response.status


@asynccontextmanager
async def streaming(url: str, kind: str, *commands: Any, **connect: Any) -> AsyncIterator[Stream]:
    """Open a stream. kind: "http", "sse" or "sse post". commands: behind `connect`."""
    first = "\n".join(map(json.dumps, [{"id": 1, "connect": connect}, *commands]))
    async with aiohttp.ClientSession() as http:
        if kind == "sse":
            opening = http.get(f"{url}/connection/sse?cf_connect={quote(first)}")
        else:
            path = "http_stream" if kind == "http" else "sse"
            opening = http.post(f"{url}/connection/{path}", data=first)
        async with opening as response:
            assert response.status == 200, await response.text()
            stream = Stream(response, http, is_sse=kind != "http")
            told = await stream.until("connect")
            stream.session, stream.node = told["session"], told["node"]
            assert told["pong"] is False
            yield stream


@pytest.mark.parametrize("kind", ["http", "sse", "sse post"])
async def test_commands_reach_the_stream_by_any_node(nodes: Nodes, url: str, kind: str) -> None:
    other_url = await nodes.start()
    async with streaming(url, kind, {"id": 2, "subscribe": {"channel": CHANNEL}}, token=token_of("ann")) as client:
        assert (await client.until("subscribe"))["recoverable"] is True
        for number, at in enumerate((url, other_url) * 5, 3):
            assert await client.send(at, {"id": number, "publish": {"channel": CHANNEL, "data": number}}) == 204
            pushed = [await client.next(), await client.next()]
            assert {"id": number, "publish": {}} in pushed
            assert [each["push"]["pub"]["data"] for each in pushed if "push" in each] == [number]
    await nodes.until_subscribed(0)


async def test_stream_of_protobuf(url: str) -> None:
    from centrifuge.protocol import client_pb2  # type: ignore[import-untyped]  # ships no annotations

    command = client_pb2.Command(id=1, connect=client_pb2.ConnectRequest()).SerializeToString()
    headers = {"Content-Type": "application/octet-stream"}
    async with aiohttp.ClientSession(headers=headers) as http:
        body = bytes((len(command),)) + command
        async with http.post(f"{url}/connection/http_stream", data=body) as response:
            assert response.content_type == "application/octet-stream"
            (size,) = await response.content.readexactly(1)
            told = client_pb2.Reply.FromString(await response.content.readexactly(size)).connect
            ping = client_pb2.Command(id=7, ping=client_pb2.PingRequest()).SerializeToString()
            later = client_pb2.EmulationRequest(
                node=told.node, session=told.session, data=bytes((len(ping),)) + ping
            ).SerializeToString()
            async with http.post(f"{url}/emulation", data=later) as answer:
                assert answer.status == 204
            (size,) = await response.content.readexactly(1)
            assert client_pb2.Reply.FromString(await response.content.readexactly(size)).id == 7


@pytest.mark.parametrize("changed", ["secret", "node", "session", "serial"])
async def test_who_does_not_know_the_session_cannot_use_it(nodes: Nodes, url: str, changed: str) -> None:
    other_url = await nodes.start()
    async with streaming(url, "http") as client:
        own = client.session
        wrong = {
            "secret": {"session": own[:-4] + "0000"},
            "node": {"node": "another"},
            "session": {"session": "~~"},
            "serial": {"session": own.replace(".1~", ".99~")},
        }[changed]
        for at in (url, other_url):
            status = await client.send(at, {"id": 2, "ping": {}}, **wrong)
            assert status == (404 if changed in ("secret", "serial") else 400)
        assert await client.send(other_url, {"id": 3, "ping": {}}) == 204
        assert (await client.next())["id"] == 3, "and no command with a wrong session"


async def test_end_is_a_push_and_the_end_of_the_response(nodes: Nodes, url: str) -> None:
    async with streaming(url, "sse", token=token_of("ann")) as client:
        await nodes.gateways[0].node.auth.revoke("ann")
        assert (await client.until("push"))["disconnect"]["code"] == 3503
        assert await client.next() is None
        assert await client.send(url, {"id": 2, "ping": {}}) == 404
    async with streaming(url, "http") as client:
        draining = asyncio.create_task(nodes.gateways[0].drain())
        assert (await client.until("push"))["disconnect"]["code"] == 3001
        await draining


async def test_bad_first_commands_end_the_stream(url: str) -> None:
    async with aiohttp.ClientSession() as http:
        for body, code in (
            ("", 3501),
            ("no json", 3501),
            ('{"id":1,"ping":{}}', 3501),
            ('{"id":1,"connect":{"token":"x"}}', 3500),
        ):
            async with http.post(f"{url}/connection/http_stream", data=body) as response:
                (line,) = (await response.text()).splitlines()
                assert json.loads(line)["push"]["disconnect"]["code"] == code, body
        async with http.post(f"{url}/connection/http_stream", data="x" * 70_000) as response:
            assert response.status == 413
        async with http.post(f"{url}/emulation", data="[]") as response:
            assert response.status == 400


async def test_only_pages_of_allowed_origins_connect(url: str) -> None:
    async with aiohttp.ClientSession() as http:
        for origin, status in ((ORIGIN, 204), ("https://evil.example.org", 403)):
            headers = {"Origin": origin}
            for path in ("/connection/http_stream", "/connection/sse", "/emulation"):
                async with http.options(url + path, headers=headers) as response:
                    assert response.status == status
                    assert (response.headers.get("Access-Control-Allow-Origin") == origin) is (status == 204)
            async with http.post(f"{url}/emulation", data="{}", headers=headers) as response:
                assert response.status == (400 if status == 204 else 403)


async def test_url_may_only_connect_and_subscribe(nodes: Nodes, url: str) -> None:
    for commands, is_allowed in (
        ([{"id": 2, "subscribe": {"channel": CHANNEL}}], True),
        ([{"id": 2, "publish": {"channel": CHANNEL, "data": 1}}], False),
    ):
        async with streaming(url, "sse", *commands) as client:
            if is_allowed:
                await client.until("subscribe")
            else:
                assert (await client.until("push"))["disconnect"]["code"] == 3501
    async with aiohttp.ClientSession(headers={"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}) as http:
        async with http.get(f"{url}/connection/sse?cf_connect=") as response:
            assert response.status == 403, "a link"


async def test_requests_of_a_client_are_limited(nodes: Nodes, url: str) -> None:
    async with streaming(url, "http") as client:
        await client.send(url, *([{}] * 3_000))
        assert (await client.until("push"))["disconnect"]["code"] == 3504
    url = await nodes.start(SNORKY_LIMITS__FRAMES_PER_S="1")
    async with streaming(url, "http") as client:
        for _ in range(20):
            await client.send(url)
        assert (await client.until("push"))["disconnect"]["code"] == 3504


async def test_commands_that_wait_are_limited_and_counted(
    nodes: Nodes, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snorky.gateway.http.protocols.centrifuge.emulated.FRAMES_MAX_BYTES", 1_000)
    refused = nodes.gateways[0].node.metrics.limit_hits.labels("waiting_commands")
    async with streaming(url, "http") as client:
        (made,) = (each for each in nodes.gateways[0].node._connections)
        made._wire.pause_reading()  # type: ignore[attr-defined]
        for _ in range(4):  # the first is in progress
            await client.send(url, {"id": 2, "publish": {"channel": CHANNEL, "data": "x" * 400}})
        assert (await client.until("push"))["disconnect"]["code"] == 3504
        assert refused._value.get() >= 1


async def test_fault_of_the_node_ends_the_stream(
    nodes: Nodes, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with streaming(url, "http") as client:
        monkeypatch.setattr(CentrifugeClient, "process", _failing)
        await client.send(url, {"id": 2, "subscribe": {"channel": CHANNEL}})
        assert (await client.until("push"))["disconnect"]["code"] == 3004, "it must not wait without an end"
        assert await client.next() is None
    assert "commands failed" in capsys.readouterr().out


def _failing(client: CentrifugeClient, command: Any, size: int) -> None:
    raise RuntimeError("a fault of the node")


async def test_commands_of_many_requests_keep_their_order(nodes: Nodes, url: str) -> None:
    async with streaming(url, "http", {"id": 2, "subscribe": {"channel": CHANNEL}}) as client:
        await client.until("subscribe")
        for at in range(5):
            numbers = range(100 * at, 100 * at + 100)
            commands = [{"id": each + 10, "publish": {"channel": CHANNEL, "data": each}} for each in numbers]
            assert await client.send(url, *commands) == 204
        seen = []
        while len(seen) < 500:
            message = await client.next()
            if "push" in message:
                seen.append(message["push"]["pub"]["data"])
        assert seen == list(range(500))


async def test_client_that_leaves_is_noticed(nodes: Nodes, url: str) -> None:
    async with streaming(url, "http", {"id": 2, "subscribe": {"channel": CHANNEL}}) as client:
        await client.until("subscribe")
        assert client.response.connection is not None and client.response.connection.transport is not None
        client.response.connection.transport.abort()

        async def is_gone() -> bool:
            return nodes.gateways[0].node.counts["connections"] == 0

        await eventually(is_gone, within_s=DEADLINE_S, what="the connection is gone")


async def test_client_that_does_not_read_is_closed(nodes: Nodes) -> None:
    url = await nodes.start(SNORKY_LIMITS__OUTBOX_MAX_BYTES="200000", SNORKY_LIMITS__SEND_BUFFER_BYTES="16384")
    slow = nodes.gateways[-1].node.metrics.slow_consumers_closed
    async with streaming(url, "http", {"id": 2, "subscribe": {"channel": CHANNEL}}) as client:
        await client.until("subscribe")
        assert client.response.connection is not None and client.response.connection.transport is not None
        client.response.connection.transport.pause_reading()  # type: ignore[attr-defined]
        async with Publisher(nodes.redis_url) as publisher:
            for number in range(600):
                await publisher.publish(CHANNEL, {"number": number, "filler": "x" * 8000})

        async def is_closed() -> bool:
            return slow._value.get() == 1

        await eventually(is_closed, within_s=DEADLINE_S, what="the slow client is closed")
        await nodes.until_subscribed(0)
