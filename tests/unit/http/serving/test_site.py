"""Site: what aiohttp serves and logs, and the sockets below."""

import asyncio
import socket
from typing import Any

import pytest
from aiohttp import web

from snorky.gateway.errors import ConfigurationError
from snorky.gateway.http.serving.listen import listen, url_of
from snorky.gateway.http.serving.site import Site
from tests.support.clients.raw_ws import handshake_head
from tests.support.processes.tools import eventually
from tests.support.scenarios.site import on_both_loops, running_site

NO_HTTP = [
    b"\x00\x01\x02\r\n\r\n",
    b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n",  # TLS
    b"GET /ws HTTP/9.1\r\nHost: x\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: x\r\nNo field\r\n\r\n",
    b"GET /ws HTTP/1.1\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: x\r\n" + b"A: a\r\n" * 200 + b"\r\n",
    b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /ws HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /ws HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /ws HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /ws HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
    b"GET /ws HTTP/1.1\r\nHost: x\r\nExpect: \xff\xfe\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: x\r\nExpect: nothing\r\n\r\n",
]


@on_both_loops
@pytest.mark.parametrize("data", NO_HTTP)
async def test_invalid_http_is_refused_and_not_logged_as_an_error(data: bytes) -> None:
    """The site fails a test that logs a warning or more: peers must not be able to fill our logs."""
    async with running_site() as site:
        client = await site.open()
        await client.send(data)
        assert (await client.response()).status >= 400


@on_both_loops
async def test_client_that_disconnects_during_its_answer_is_not_logged() -> None:
    async with running_site() as site:
        for _ in range(30):
            client = await site.open()
            await client.send(handshake_head({"Expect": "100-continue"}))
            client.reset()


def test_a_port_in_use_is_reported_and_opened_sockets_are_closed() -> None:
    (taken,) = listen("127.0.0.1", 0)
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match="choose another port"):
            listen("127.0.0.1", port)
        with pytest.raises(ConfigurationError, match="choose another port"):
            listen("", port)
    for each in listen("127.0.0.1", port):
        each.close()


def test_an_invalid_host_is_reported() -> None:
    with pytest.raises(ConfigurationError, match="check host"):
        listen("203.0.113.1", 0)
    with pytest.raises(ConfigurationError, match="check host"):
        listen("no.such.host.invalid", 0)


def test_a_free_port_is_free_for_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[socket.socket] = []
    plain = socket.socket

    class Late(plain):  # type: ignore[misc, valid-type]
        """Before it binds the second family, another program takes the port there, but only once."""

        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET and not taken:
                taken.append(plain(socket.AF_INET, socket.SOCK_STREAM))
                taken[0].bind(("0.0.0.0", address[1]))
            super().bind(address)

    monkeypatch.setattr("snorky.gateway.http.serving.listen.socket.socket", Late)
    sockets = listen("", 0)
    ports = {each.getsockname()[1] for each in sockets}
    assert len(taken) == 1 and len(ports) == 1 and taken[0].getsockname()[1] not in ports
    for each in [*taken, *sockets]:
        each.close()


def test_a_name_with_two_families_is_bound_in_both_on_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (family, socket.SOCK_STREAM, 6, "", (address, 0))
        for family, address in ((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_others: found)
    sockets = listen("localhost", 0)
    try:
        assert [each.family for each in sockets] == [socket.AF_INET6, socket.AF_INET]
        assert len({each.getsockname()[1] for each in sockets}) == 1
        assert [url_of(each).rpartition(":")[0] for each in sockets] == ["http://[::1]", "http://127.0.0.1"]
    finally:
        for each in sockets:
            each.close()


def test_workers_share_a_port() -> None:
    (first,) = listen("127.0.0.1", 0, reuse_port=True)
    (second,) = listen("127.0.0.1", first.getsockname()[1], reuse_port=True)
    first.close()
    second.close()


@on_both_loops
async def test_a_page_may_read_why_it_was_refused() -> None:
    """A browser hides the handshake's response from its page, which therefore repeats the request by fetch."""
    origin = "Origin: https://refused.example\r\n"
    async with running_site() as site:
        for path, headers, status in [("/ws", origin, 403), ("/ws", "", 426), ("/wrong", origin, 404)]:
            client = await site.open()
            await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
            response = await client.response()
            assert (response.status, response.headers["access-control-allow-origin"]) == (status, "*")


@on_both_loops
async def test_a_request_that_is_on_its_way_when_a_site_stops_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A balancer keeps connections, and learns only from an answer or a reset that one is closed."""
    monkeypatch.setattr("snorky.gateway.http.serving.site.SETTLE_S", 5.0)

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="done")

    app = web.Application()
    app.add_routes([web.post("/", answer)])
    site = Site(app, header_timeout_s=5)
    (bound,) = listen("127.0.0.1", 0)
    await site.start([bound])

    async def listens_no_more() -> bool:
        return bound.fileno() == -1

    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    async with asyncio.timeout(4):  # less than SETTLE_S: the site does not wait for connections that have gone
        reader, writer = await asyncio.open_connection(*bound.getsockname())
        writer.write(request)
        assert b"close" not in await reader.readuntil(b"done")
        stopping = asyncio.create_task(site.stop())
        await eventually(listens_no_more, within_s=3, what="the site listens no more")
        writer.write(request)
        assert b"\r\nConnection: close\r\n" in await reader.readuntil(b"done")
        assert await reader.read() == b""
        await stopping
    writer.close()
    await writer.wait_closed()
