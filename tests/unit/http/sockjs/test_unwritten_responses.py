"""A response can be lost after its session has ended it: the next one gets messages only when it is written."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from snorky.gateway.http.serving.response_stream import is_gone
from snorky.gateway.http.sockjs.forwarding import owner
from tests.support.scenarios.site import on_both_loops, until
from tests.support.scenarios.sockjs_calls import connection_of, echo, send, values_of
from tests.support.scenarios.sockjs_site import QUICK, SockJSCaller, SockJSSite, sockjs_site

LARGE = 50_000
INTERRUPTED = 'c[1002,"Connection interrupted"]\n'

each_writer = pytest.mark.parametrize("writer", [0, 1], ids=["on its own node", "by another node"])
each_name = pytest.mark.parametrize("name", ["xhr", "xhr_streaming"])


def hold_writes(site: SockJSSite, at: int) -> asyncio.Event:
    """Let a node write no response before the event, or before its client has gone."""
    sockjs: Any = site.hosts[at].sockjs
    respond, may_write = sockjs._respond, asyncio.Event()

    async def held(request: web.Request, *args: Any) -> web.StreamResponse:
        await until(lambda: may_write.is_set() or is_gone(request))
        response: web.StreamResponse = await respond(request, *args)
        return response

    sockjs._respond = held
    return may_write


@asynccontextmanager
async def unwritten(client: SockJSCaller, site: SockJSSite, name: str, at: int) -> AsyncIterator["asyncio.Task[Any]"]:
    """Request a response, which the session ends with the value "first", and which is not written yet."""
    request = asyncio.create_task(client.post(name, at=at))
    await until(lambda: connection_of(site)._wire._drain is not None)
    assert await client.post("xhr_send", echo("first", "x" * QUICK.response_max_bytes), at=0) == (204, "")
    await until(lambda: connection_of(site)._wire._drain is None)
    try:
        yield request
    finally:
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)


@each_name
@each_writer
@on_both_loops
async def test_next_receiver_gets_messages_when_the_last_response_is_written(name: str, writer: int) -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        may_write = hold_writes(site, writer)
        async with unwritten(client, site, name, writer) as first:
            second = asyncio.create_task(client.post("xhr", at=1 - writer))
            await until(lambda: connection_of(site)._wire._drain is not None)
            await send(client, "second")
            done, _ = await asyncio.wait([second], timeout=0.05)
            assert not done
            may_write.set()
            assert values_of((await first)[1])[0] == "first"
            text = (await second)[1]
            while "second" not in values_of(text):  # a poll returns one write
                text += (await client.post("xhr", at=0))[1]
            assert values_of(text)[-1] == "second"
        assert not site.hosts[0].sockjs._peers._session_owner.is_busy


@each_name
@each_writer
@on_both_loops
async def test_response_that_is_lost_after_its_end_ends_the_session(name: str, writer: int) -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        hold_writes(site, writer)
        async with unwritten(client, site, name, writer) as first:
            first.cancel()
            await until(lambda: connection_of(site).is_closed, "the node notices", within_s=30)
        assert await client.post("xhr", at=1 - writer) == (200, INTERRUPTED)


@each_name
@on_both_loops
async def test_response_that_is_never_confirmed_ends_the_session(name: str) -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        hold_writes(site, 1)
        async with unwritten(client, site, name, 1):
            second = asyncio.create_task(client.post("xhr", at=0))
            await until(lambda: connection_of(site)._wire._drain is not None)
            await send(client, "second")
            site.clock.advance(QUICK.unwritten_s - 0.1)
            done, _ = await asyncio.wait([second], timeout=0.05)
            assert not done
            site.clock.advance(0.2)
            assert await second == (200, INTERRUPTED)


@on_both_loops
async def test_node_that_dies_with_a_response_ends_the_session_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "QUIET_S", 0.02)
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        hold_writes(site, 1)
        async with unwritten(client, site, "xhr", 1):
            kill(site, 1)
            await until(lambda: connection_of(site).is_closed, "the node notices", within_s=10)  # not only after 15 s
            assert await client.post("xhr", at=0) == (200, INTERRUPTED)


@asynccontextmanager
async def slow_poll(
    client: SockJSCaller, site: SockJSSite
) -> AsyncIterator[tuple[asyncio.StreamReader, dict[str, asyncio.Transport]]]:
    """Request a response that is too large for the kernel, and not large enough to stop its writer. Read none of it."""
    sockjs: Any = site.hosts[0].sockjs
    respond, ends = sockjs._respond, dict[str, asyncio.Transport]()

    async def narrow(request: web.Request, *args: Any) -> web.StreamResponse:
        assert request.transport is not None
        ends["node"] = request.transport
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        response: web.StreamResponse = await respond(request, *args)
        return response

    sockjs._respond = narrow
    wire, url = connection_of(site)._wire, URL(client.url("xhr", at=0))
    narrow_socket = socket.socket()
    narrow_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow_socket.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow_socket, (url.host, url.port))
    reader, writer = await asyncio.open_connection(sock=narrow_socket, limit=1024)
    ends["client"] = writer.transport
    try:
        writer.write(f"POST {url.path} HTTP/1.1\r\nHost: {url.authority}\r\nContent-Length: 0\r\n\r\n".encode())
        await until(lambda: wire._drain is not None)
        wire._send(b'a["' + b"x" * LARGE + b'"]')
        await asyncio.sleep(0.05)
        assert wire._unwritten, "the client has not read it"
        yield reader, ends
    finally:
        sockjs._respond = respond
        writer.close()


@on_both_loops
async def test_slow_reader_confirms_a_poll_when_it_has_read() -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        async with slow_poll(client, site) as (reader, _):
            assert await reader.readuntil(b"\r\n\r\n")
            assert len(await reader.readexactly(LARGE)) == LARGE
            await until(lambda: not connection_of(site)._wire._unwritten)
        await send(client, "next")
        assert values_of((await client.post("xhr", at=0))[1]) == ["next"]


@pytest.mark.parametrize("end", ["client", "node"])
@on_both_loops
async def test_slow_response_that_is_cut_ends_the_session(end: str) -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        async with slow_poll(client, site) as (_, ends):
            ends[end].abort()
            await until(lambda: connection_of(site).is_closed, "the node notices", within_s=30)
        assert await client.post("xhr", at=0) == (200, INTERRUPTED)


@on_both_loops
async def test_stream_that_the_client_closes_after_its_last_frame_is_no_loss() -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        async with client.stream(at=1) as stream:
            await until(lambda: connection_of(site)._wire._drain is not None)
            await send(client, "x" * QUICK.response_max_bytes)
            assert await stream.content.readline()
        await send(client, "next")
        assert values_of((await client.post("xhr", at=0))[1]) == ["next"]


def kill(site: SockJSSite, at: int) -> None:
    """Let a node hear nothing, say nothing, and receive no channel."""
    dead = site.hosts[at].broker
    dead.is_lossy = True

    def publish(key: str, _payload: bytes) -> asyncio.Future[int]:
        return answer(1)

    dead.publish = publish  # type: ignore[method-assign]
    for host in site.hosts:
        if host.broker is dead:
            continue
        going = host.broker.publish

        def to_living(key: str, payload: bytes, going: Any = going) -> asyncio.Future[int]:
            return answer(0) if key == f"sockjs peer:n{at}" else going(key, payload)

        host.broker.publish = to_living  # type: ignore[method-assign]


def answer(hearers: int) -> asyncio.Future[int]:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(hearers)
    return future


@each_writer
@on_both_loops
async def test_end_of_a_session_waits_for_the_last_response(writer: int) -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        may_write = hold_writes(site, writer)
        async with unwritten(client, site, "xhr", writer) as first:
            second = asyncio.create_task(client.post("xhr", at=1 - writer))
            await until(lambda: connection_of(site)._wire._drain is not None)
            await send(client, "second")
            connection_of(site).close(3000, "over")
            done, _ = await asyncio.wait([second], timeout=0.05)
            assert not done
            may_write.set()
            assert values_of((await first)[1])[0] == "first"
            texts = [(await second)[1]]
            while "c[" not in texts[-1]:
                texts.append((await client.post("xhr", at=0))[1])
            assert [value for text in texts for value in values_of(text)][-1] == "second"
            assert texts[-1] == 'c[3000,"over"]\n'


@each_writer
@on_both_loops
async def test_nothing_follows_a_lost_response_but_the_end(writer: int) -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        hold_writes(site, writer)
        async with unwritten(client, site, "xhr", writer) as first:
            await send(client, "second")
            connection: Any = connection_of(site)
            connection.close(3000, "over")
            first.cancel()
            await until(lambda: not connection._wire._unwritten, "the node notices", within_s=30)
        assert await client.post("xhr", at=1 - writer) == (200, 'c[3000,"over"]\n')


@on_both_loops
async def test_confirmation_that_was_lost_is_repeated() -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        peers: Any = site.hosts[1].sockjs._peers
        tell = peers._tell

        def lossy(node_id: str, *words: Any) -> asyncio.Future[int]:
            if words[0] != "finished":
                return tell(node_id, *words)  # type: ignore[no-any-return]
            return answer(1)

        peers._tell = lossy
        poll = asyncio.create_task(client.post("xhr", at=1))
        await until(lambda: connection_of(site)._wire._drain is not None)
        await send(client, "first")
        assert values_of((await poll)[1]) == ["first"]
        await send(client, "second")
        assert values_of((await client.post("xhr", at=0))[1]) == ["second"]
        await until(lambda: not peers._finished)


@on_both_loops
async def test_slow_reader_keeps_its_session() -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        async with slow_poll(client, site) as (reader, _):
            site.clock.advance(QUICK.disconnect_delay_s + 1)
            await asyncio.sleep(5 * QUICK.beat_s)
            assert await reader.readuntil(b"\r\n\r\n")
            assert len(await reader.readexactly(LARGE)) == LARGE
            await until(lambda: not connection_of(site)._wire._unwritten)
        await send(client, "next")
        assert values_of((await client.post("xhr", at=0))[1]) == ["next"]


@on_both_loops
async def test_reader_that_is_too_slow_loses_its_session() -> None:
    async with sockjs_site(2) as site:
        client = site.client()
        assert await client.post("xhr", at=0) == (200, "o\n")
        async with slow_poll(client, site):
            site.clock.advance(QUICK.writing_s + 1)
            await until(lambda: site.connections == 0)
