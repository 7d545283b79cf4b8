"""`aio.Client` when connecting fails: which failures end it, which are retried, and how both are reported."""

import asyncio
import logging
import pickle
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from certificates import make_certificate
from realtime_server import RealtimeServer

from snorky.client import TransportError
from snorky.client.aio import Client, Recovered
from snorky.client.errors import ConnectionEnded

DEADLINE_S = 20


class Troubles:
    """Records the calls of `on_reconnecting`, and notifies about new ones."""

    def __init__(self) -> None:
        self.heard: list[tuple[TransportError, float]] = []
        self._more = asyncio.Event()

    def __call__(self, error: TransportError, delay_s: float) -> None:
        self.heard.append((error, delay_s))
        self._more.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.heard) < count:
                self._more.clear()
                await self._more.wait()


async def end_of(url: str, **options: Any) -> ConnectionEnded:
    """Connect and subscribe; return the error that `ready` raises."""
    async with asyncio.timeout(DEADLINE_S), Client(url, **options) as client:
        with pytest.raises(ConnectionEnded) as caught:
            await client.subscribe("news").ready()
        assert await client.wait_ended() is caught.value
        for attempt in (client.call("test", "echo"), client.publish("news", 1)):
            with pytest.raises(ConnectionEnded):
                await attempt
    assert caught.value.close_code == 1006 and caught.value.may_have_happened is False
    return caught.value


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 405, 410, 426])
async def test_answer_that_cannot_heal_ends_the_client_and_is_told(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with RealtimeServer.running() as server:
        server.answers = repeat((status, "The reason\nand more", {"Location": "/elsewhere"}))
        error = await end_of(server.url, token="t")
        assert server.refused == 1
    assert error.status == status
    assert f"HTTP {status}: " in str(error) and ("/elsewhere" if status == 301 else "The reason") in error.reason
    assert f"HTTP {status}" in caplog.text
    assert pickle.loads(pickle.dumps(error)).status == status


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_answer_that_can_heal_is_told_and_tried_again(status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "snorky.realtime")
    troubles = Troubles()
    async with RealtimeServer.running() as server:
        server.answers = iter([(status, "Busy", {})] * 3)
        options: dict[str, Any] = {"backoff_base_s": 0.01, "backoff_max_s": 0.02, "on_reconnecting": troubles}
        async with asyncio.timeout(DEADLINE_S), Client(server.url, **options) as client:
            await client.subscribe("news").ready()
    assert [(error.status, error.code) for error, _delay_s in troubles.heard] == [(status, "unreachable")] * 3
    assert f"HTTP {status}: Busy" in str(troubles.heard[0][0])
    assert caplog.text.count(f"HTTP {status}: Busy") == 1  # only the first; the others have the same reason


async def test_time_that_the_gateway_asks_for_is_kept() -> None:
    troubles = Troubles()
    async with RealtimeServer.running() as server:
        server.answers = iter([(429, "Busy", {"Retry-After": "77"})])
        async with Client(server.url, on_reconnecting=troubles):
            await troubles.until(1)
    assert troubles.heard[0][1] == 77


async def test_calls_and_publishes_that_were_not_sent_tell_why() -> None:
    async with RealtimeServer.running() as server:
        server.answers = repeat((503, "Going away", {}))
        troubles = Troubles()
        options: dict[str, Any] = {"call_timeout_s": 0.1, "publish_timeout_s": 0.1, "on_reconnecting": troubles}
        async with Client(server.url, backoff_base_s=0.01, **options) as client:
            await troubles.until(1)
            for attempt in (client.call("test", "echo"), client.publish("news", 1)):
                with pytest.raises(TransportError, match="in time: HTTP 503: Going away") as caught:
                    await attempt
                assert (caught.value.code, caught.value.status) == ("unreachable", 503)
                assert caught.value.may_have_happened is False


async def test_client_that_was_connected_goes_on_trying() -> None:
    """A load balancer replies 404 while its servers are replaced: clients must survive that."""
    troubles = Troubles()
    options: dict[str, Any] = {"backoff_base_s": 0.01, "backoff_max_s": 0.02, "on_reconnecting": troubles}
    async with RealtimeServer.running() as server, Client(server.url, **options) as client:
        async with asyncio.timeout(DEADLINE_S), client.subscribe("news", recover=True) as news:
            server.answers = repeat((404, "Nothing here", {}))
            server.cut()
            await troubles.until(4)
            server.answers = iter(())
            assert await anext(news) == Recovered("news", True, "e:0:t0")
    assert [error.status for error, _delay_s in troubles.heard[:4]] == [None, 404, 404, 404]


async def test_token_that_a_proxy_refuses_is_asked_for_anew_once() -> None:
    tokens = iter(["old", "new", "never"])
    async with RealtimeServer.running() as server:
        server.answers = iter([(401, "Expired", {})])
        async with asyncio.timeout(DEADLINE_S), Client(server.url, token=lambda: next(tokens)) as client:
            await client.subscribe("news").ready()
        assert [handshake["authorization"] for handshake in server.handshakes] == ["Bearer new"]
        tokens = iter(["old", "new", "never"])
        server.answers = repeat((401, "Expired", {}))
        assert (await end_of(server.url, token=lambda: next(tokens))).status == 401
        assert next(tokens) == "never"


async def test_function_that_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_error: TransportError, _delay_s: float) -> None:
        raise ZeroDivisionError

    async with RealtimeServer.running() as server:
        server.answers = iter([(503, "Busy", {})])
        async with asyncio.timeout(DEADLINE_S):
            async with Client(server.url, on_reconnecting=fail, backoff_base_s=0.01) as client:
                await client.subscribe("news").ready()
    assert "on_reconnecting failed" in caplog.text


@asynccontextmanager
async def raw(
    answer: bytes, *, reads: bool = True, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, Any]]:
    """Serve bytes that are not a gateway's, and count connections."""
    came = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(1)
        if reads:
            await reader.read(1)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1], came


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x15\x03\x01\x00\x02\x02\x16\r\n\r\n"])
async def test_server_that_speaks_no_http_ends_the_client(answer: bytes) -> None:
    async with raw(answer) as (port, came):
        error = await end_of(f"ws://127.0.0.1:{port}/ws")
        assert len(came) == 1
    assert error.status is None and "no answer in HTTP" in error.reason


async def test_tls_to_a_plain_port_ends_the_client() -> None:
    async with raw(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (port, came):
        error = await end_of(f"wss://127.0.0.1:{port}/ws")
        assert len(came) == 1
    assert error.status is None and "no TLS" in error.reason


async def test_certificate_that_is_not_good_ends_the_client(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(tmp_path))
    async with raw(b"", tls=context) as (port, _came):
        error = await end_of(f"wss://127.0.0.1:{port}/ws")
    assert "no TLS" in error.reason and "certificate verify failed" in error.reason


async def test_argument_that_the_library_does_not_take_ends_the_client() -> None:
    async with RealtimeServer.running() as server:
        error = await end_of(server.url, connect_options={"colour": "red"})
    assert "colour" in error.reason


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_connection_that_is_cut_before_an_answer_is_tried_again(scheme: str) -> None:
    """A load balancer without servers does this, and a gateway that crashes at this moment."""
    troubles = Troubles()
    async with raw(b"") as (port, came):
        url = f"{scheme}://127.0.0.1:{port}/ws"
        async with Client(url, on_reconnecting=troubles, backoff_base_s=0.01, backoff_max_s=0.02):
            await troubles.until(3)
        assert len(came) >= 3


async def test_server_that_is_not_there_yet_is_tried_again() -> None:
    troubles = Troubles()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options: dict[str, Any] = {"backoff_base_s": 0.01, "backoff_max_s": 0.05, "on_reconnecting": troubles}
    async with asyncio.timeout(DEADLINE_S), Client(f"ws://127.0.0.1:{port}/ws", **options) as client:
        await troubles.until(3)
        async with RealtimeServer.running(port):
            await client.subscribe("news").ready()
    assert {error.code for error, _delay_s in troubles.heard} == {"unreachable"}
