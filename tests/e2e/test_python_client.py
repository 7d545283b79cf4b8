"""clients/python against a real gateway: answers of /backend become results and errors."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from snorky.client import AsyncSnorkyBackend, Call, SnorkyBackend, SnorkyError, SnorkyHTTPTransport, TransportError
from tests.support.processes.nodes import NodeProcess

KEY = "the-key-of-the-backend-in-these-tests"


@pytest.fixture
async def node() -> AsyncIterator[NodeProcess]:
    async with NodeProcess.running({"SNORKY_PRIVATE__API_KEY": KEY}) as node:
        yield node


def url_of(node: NodeProcess) -> str:
    return f"http://127.0.0.1:{node.private_port}/backend"


async def hear(socket: aiohttp.ClientWebSocketResponse) -> object:
    return (await socket.receive_json(timeout=30))["message"]


async def test_published_messages_reach_clients_in_order_one_by_one_and_many_at_once(node: NodeProcess) -> None:
    def publish() -> None:
        with SnorkyHTTPTransport(url_of(node), KEY) as transport:
            backend = SnorkyBackend(transport)
            assert backend.call("pubsub_backend", "publish", channel={"room": 1}, message=0) is None
            calls = [
                Call("pubsub_backend", "publish", {"channel": {"room": 1}, "message": number})
                for number in range(1, 300)
            ]
            assert [reply.result() for reply in backend.call_many(calls)] == [None] * 299

    async with aiohttp.ClientSession() as session, session.ws_connect(node.websocket_url) as client:
        subscribe = {"command": "subscribe", "params": {"channel": {"room": 1}}, "callId": 1}
        await client.send_json({"service": "pubsub", "message": subscribe})
        assert await hear(client) == {"type": "response", "callId": 1, "data": None}
        await asyncio.to_thread(publish)
        for number in range(300):
            assert await hear(client) == {"type": "message", "channel": {"room": 1}, "message": number}


async def test_refusals_of_a_gateway_have_their_codes(node: NodeProcess) -> None:
    async with AsyncSnorkyBackend(SnorkyHTTPTransport(url_of(node), KEY)) as backend:
        with pytest.raises(SnorkyError, match="Unknown command") as refused:
            await backend.call("pubsub_backend", "shout")
        assert refused.value.code == "unknown_command"
        with pytest.raises(SnorkyError, match="Invalid params"):
            await backend.call("pubsub_backend", "publish", channel="news")
        with pytest.raises(TransportError) as lost:
            await backend.call("nobody", "publish")
        assert (lost.value.status, lost.value.code, lost.value.may_have_happened) == (404, "unknown_service", False)
        good, unknown = await backend.call_many(
            [Call("pubsub_backend", "publish", {"channel": "news", "message": 1}), Call("nobody", "publish")]
        )
        assert good.error is None
        assert unknown.error is not None and unknown.error.code == "unknown_service"


@pytest.mark.parametrize("key", [None, "x" * 40])
async def test_wrong_key_is_reported(node: NodeProcess, key: str | None) -> None:
    async with AsyncSnorkyBackend(SnorkyHTTPTransport(url_of(node), key)) as backend:
        with pytest.raises(TransportError) as refused:
            await backend.call("pubsub_backend", "publish", channel="news", message=1)
        assert (refused.value.status, refused.value.code) == (401, "unauthorized")


async def test_backend_outlives_its_gateway(node: NodeProcess) -> None:
    async with AsyncSnorkyBackend(SnorkyHTTPTransport(url_of(node), KEY)) as backend:
        await backend.call("pubsub_backend", "publish", channel="news", message=1)
        port = node.private_port
        await node.close()
        with pytest.raises(TransportError) as lost:
            await backend.call("pubsub_backend", "publish", channel="news", message=2)
        assert (lost.value.code, lost.value.may_have_happened) == ("unreachable", False)
        async with NodeProcess.running({"SNORKY_PRIVATE__API_KEY": KEY, "SNORKY_PRIVATE__PORT": str(port)}):
            await backend.call("pubsub_backend", "publish", channel="news", message=3)
