"""Taking a connection over from aiohttp: it keeps nothing, loses nothing, and no longer refers to it."""

import asyncio
import gc
import re
import tomllib
import weakref
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

import snorky.gateway.http.websocket.handler
from snorky.gateway.config.settings import Limits
from snorky.gateway.errors import ConnectionClosed
from snorky.gateway.http.websocket.aiohttp_internals import take_over
from tests.support.clients.raw_ws import CLOSE, PING, PONG, TEXT, RawClient, close_payload, frame, handshake_head
from tests.support.scenarios.site import RunningSite, gone, on_both_loops, running_site, until

pytestmark = pytest.mark.usefixtures("through_aiohttp")

GET = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"


def echoed(number: int) -> bytes:
    return frame(TEXT, b'{"service":"echo","message":%d}' % number)


async def assert_echoes(client: RawClient, *numbers: int) -> None:
    for number in numbers:
        assert await client.message() == {"service": "echo", "message": number}


def server_of(site: RunningSite) -> web.Server:
    server = site.site._runner.server
    assert server is not None
    return server


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Weak references to the requests and aiohttp protocols of all handshakes, and their other objects."""
    found: list[Any] = []

    def spy(request: web.Request, protocol: asyncio.Protocol, response: bytes) -> web.StreamResponse:
        found.append(weakref.ref(request))
        found.append(weakref.ref(request.task))
        # RequestHandler has slots and no __weakref__: found by the garbage collector instead
        return take_over(request, protocol, response)

    monkeypatch.setattr(snorky.gateway.http.websocket.handler, "take_over", spy)
    return found


def test_the_version_that_is_installed_is_the_one_that_is_pinned() -> None:
    """take_over uses private parts of aiohttp: another minor version must be checked before it is allowed."""
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    pin = next(each for each in project["dependencies"] if re.match(r"aiohttp\b", each))
    assert re.fullmatch(r"aiohttp>=3\.14\.\d+,<3\.15", pin)
    assert aiohttp.__version__.startswith("3.14.")


@on_both_loops
async def test_aiohttp_keeps_nothing_of_a_connection(seen: list[Any]) -> None:
    async with running_site() as site:
        clients = [await site.client() for _ in range(3)]
        await until(lambda: not server_of(site).connections)
        gc.collect()
        assert len(seen) == 6 and not any(reference() for reference in seen)
        assert not [each for each in gc.get_objects() if isinstance(each, RequestHandler)]
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        for number, client in enumerate(clients):
            await client.send(echoed(number))
            await assert_echoes(client, number)


@on_both_loops
async def test_aiohttp_objects_are_freed_without_the_garbage_collector(seen: list[Any]) -> None:
    """Many connections come at once: 14.7 KiB each must not wait for a garbage collection."""
    async with running_site() as site:
        await site.client()  # caches are not counted
        await until(lambda: not server_of(site).connections)
        gc.collect()
        seen.clear()
        gc.disable()
        try:
            await site.client()
            await until(lambda: not server_of(site).connections)
            await until(lambda: not any(reference() for reference in seen), within_s=30)
        finally:
            gc.enable()


@on_both_loops
async def test_the_timer_for_headers_does_not_reach_a_connection_that_was_taken_over() -> None:
    async with running_site(limits=Limits(request_header_timeout_s=0.2)) as site:
        client = await site.client()
        idle = await site.open()  # made later: once it was cut, the timer of the first one has passed
        assert await idle.until_end() == b""
        await client.send(echoed(1))
        await assert_echoes(client, 1)
        loop = asyncio.get_running_loop()
        timers = [each for each in getattr(loop, "_scheduled", ()) if not each.cancelled()]
        assert not [each for each in timers if "_process_keepalive" in repr(each)]


@on_both_loops
async def test_frames_sent_with_the_handshake_are_delivered_in_order() -> None:
    async with running_site() as site:
        client = await site.client(early=b"".join(echoed(number) for number in range(50)) + frame(PING, b"end"))
        await assert_echoes(client, *range(50))
        assert await client.receive() == (PONG, b"end")


@on_both_loops
async def test_half_a_frame_sent_with_the_handshake_is_completed_later() -> None:
    async with running_site() as site:
        data = echoed(1) + echoed(2)
        client = await site.client(early=data[:-3])
        await assert_echoes(client, 1)
        await client.send(data[-3:])
        await assert_echoes(client, 2)


@on_both_loops
async def test_more_early_bytes_than_aiohttp_buffers_are_delivered() -> None:
    """aiohttp pauses reading above its buffer limit: that must be undone."""
    async with running_site(limits=Limits(messages_burst=10_000)) as site:
        client = await site.open()
        large = frame(TEXT, b'{"service":"echo","message":"%s"}' % (b"x" * 60_000))
        sending = asyncio.ensure_future(client.send(handshake_head() + large * 20 + echoed(1)))
        assert (await client.response()).status == 101
        for _ in range(20):
            assert len((await client.message())["message"]) == 60_000
        await assert_echoes(client, 1)
        await sending


@on_both_loops
async def test_a_close_frame_sent_with_the_handshake_ends_the_connection_in_order() -> None:
    async with running_site() as site:
        client = await site.client(early=echoed(1) + frame(CLOSE, close_payload(1000)))
        await assert_echoes(client, 1)
        assert await client.closed() == 1000


@on_both_loops
async def test_a_fault_sent_with_the_handshake_is_answered() -> None:
    async with running_site() as site:
        client = await site.client(early=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await client.closed() == 1002


@on_both_loops
@pytest.mark.parametrize("count", [1, 3, 100])
async def test_requests_before_the_handshake_are_answered_first(count: int) -> None:
    """Pipelining; aiohttp queues fewer than 100 at once."""
    async with running_site() as site:
        client = await site.open()
        await client.send(GET * count + handshake_head() + echoed(1) + echoed(2))
        for _ in range(count):
            assert (await client.response()).status == 404
        assert (await client.response()).status == 101
        await assert_echoes(client, 1, 2)


class FullTransport:
    """A transport that the 101 fills: it reports that once, to its protocol at that moment."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.is_reading = False

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.protocol.pause_writing()

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def resume_reading(self) -> None:
        self.is_reading = True


class Slow(asyncio.Protocol):
    is_paused = False

    def pause_writing(self) -> None:
        self.is_paused = True


@on_both_loops
async def test_a_transport_that_was_full_is_known_to_be_full_and_one_that_was_paused_is_read() -> None:
    """Unread answers to earlier requests count: otherwise nothing would bound what is written after them."""
    loop = asyncio.get_running_loop()
    manager = web.Server(lambda _request: web.Response())  # type: ignore[arg-type, return-value]
    http = RequestHandler(manager, loop=loop)
    http._request_handler = None
    http._buffer_paused = True  # more came with the handshake than it buffers
    transport: Any = FullTransport()
    transport.protocol = http
    http.transport = transport

    class Request:
        protocol = http

    Request.transport = transport  # type: ignore[attr-defined]
    slow = Slow()
    take_over(Request(), slow, b"HTTP/1.1 101")  # type: ignore[arg-type]
    assert transport.protocol is slow and slow.is_paused
    assert transport.is_reading, "aiohttp paused it, and nothing would ever resume it"


@on_both_loops
async def test_a_client_that_disconnects_before_the_takeover_leaves_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_site() as site:
        entered: list[web.Request] = []
        real = snorky.gateway.http.websocket.handler.upgrade

        def lose_the_client(*args: Any, **others: Any) -> Any:
            entered[0].transport.abort()  # type: ignore[union-attr]
            return real(*args, **others)

        async def spy(request: web.Request) -> web.StreamResponse:
            entered.append(request)
            return await handle(request)

        handle = site.handler.handle
        monkeypatch.setattr(snorky.gateway.http.websocket.handler, "upgrade", lose_the_client)
        app = site.site._runner.app  # type: ignore[attr-defined]
        for route in app.router.routes():
            route._handler = spy
        client = await site.open()
        await client.send(handshake_head())
        assert await client.until_end() == b""
        await until(lambda: entered and not server_of(site).connections)
        entered.clear()


@on_both_loops
async def test_clients_that_reset_in_the_middle_of_the_handshake_leave_nothing() -> None:
    async with running_site() as site:
        head = handshake_head()
        for cut in [*range(1, len(head), 7), len(head)]:
            client = await site.open()
            await client.send(head[:cut] if cut < len(head) else head + echoed(1))
            client.reset()
        await gone(site)
        await until(lambda: not server_of(site).connections)


@on_both_loops
async def test_closed_connection_is_not_taken_over() -> None:
    class Gone:
        transport = None
        protocol = None

    with pytest.raises(ConnectionClosed):
        take_over(Gone(), asyncio.Protocol(), b"")  # type: ignore[arg-type]


@on_both_loops
async def test_the_end_of_the_http_server_does_not_affect_taken_over_connections() -> None:
    async with running_site() as site:
        client = await site.client()
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        await site.site.stop()
        assert loop.time() - started_s < 1.0
        assert len(list(site.node.connections)) == 1, "the node counts them, for the drain"
        await client.send(echoed(1))
        await assert_echoes(client, 1)
        site.connection.close(1001, "Going away")
        assert await client.closed() == 1001
