"""read_head: it reads usual handshakes as aiohttp does, and nothing that aiohttp would refuse or read otherwise."""

import asyncio
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.http.websocket.request_head import FIELDS_MAX, HEAD_MAX_BYTES, read_head
from tests.support.clients.raw_ws import handshake_head

CHROME = (
    b"GET /ws?room=%7B1%7D HTTP/1.1\r\nHost: app.example.org\r\nConnection: Upgrade\r\nPragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/131.0.0.0\r\nUpgrade: websocket\r\n"
    b"Origin: https://app.example.org\r\nSec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
    b'Accept-Language: en-US,en;q=0.9\r\nCookie: a=1; b="2"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n'
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)


def by_aiohttp(data: bytes) -> tuple[str, dict[str, str], bytes] | None:
    """Path, fields and rest of an upgrade request as aiohttp reads it; None: it refuses it, or reads something else."""
    loop = asyncio.new_event_loop()
    try:
        protocol: Any = BaseProtocol(loop)
        parser = HttpRequestParser(protocol, loop, 2**16, max_line_size=8190, max_field_size=8190, max_headers=128)
        try:
            messages, is_upgraded, rest = parser.feed_data(data)
        except HttpProcessingError:
            return None
        if len(messages) != 1 or not is_upgraded:
            return None
        ((message, body),) = messages
        if message.method != "GET" or (message.version.major, message.version.minor) != (1, 1) or not body.is_eof():
            return None
        names = [name.lower() for name in message.headers]
        if len(set(names)) < len(names):
            return None
        return message.url.path, {name.lower(): value for name, value in message.headers.items()}, rest
    finally:
        loop.close()


def read(data: bytes) -> dict[str, str] | None:
    found = read_head(data, "/ws")
    return None if found is None else dict(found[0]._values)


def test_a_browser_s_handshake_is_read() -> None:
    found = read_head(CHROME + b"\x81\x80abcd", "/ws")
    assert found is not None
    fields, size = found
    assert size == len(CHROME)
    assert fields.get("origin", "") == fields.get("Origin", "") == "https://app.example.org"
    assert fields.getall("SEC-WEBSOCKET-VERSION", ()) == ("13",)
    assert (fields.get("Authorization", "none"), fields.getall("Authorization", ())) == ("none", ())
    expected = by_aiohttp(CHROME)
    assert expected is not None and read(CHROME) == expected[1]


@pytest.mark.parametrize(
    "data",
    [
        CHROME[:-1],
        CHROME[:40],
        CHROME.replace(b"GET", b"POST"),
        CHROME.replace(b"GET", b"HEAD"),
        CHROME.replace(b"HTTP/1.1", b"HTTP/1.0"),
        CHROME.replace(b"/ws?", b"/ws/?"),
        CHROME.replace(b"/ws?", b"/%77s?"),
        CHROME.replace(b"/ws?", b"//ws?"),
        CHROME.replace(b"/ws?", b"http://x/ws?"),
        CHROME.replace(b"/ws?", b"/ws#"),
        CHROME.replace(b"\r\n", b"\n"),
        b"\r\n" + CHROME,
        CHROME.replace(b"Host: app.example.org\r\n", b""),
        CHROME.replace(b"Upgrade: websocket\r\n", b""),
        CHROME.replace(b"Connection: Upgrade", b"Connection: keep-alive"),
        CHROME.replace(b"Connection: Upgrade", b"Connection: upgraded"),
        CHROME.replace(b"Upgrade: websocket", b"Upgrade: h2c, websocket"),
        CHROME.replace(b"Upgrade: websocket", b"Upgrade : websocket"),
        CHROME.replace(b"Pragma: no-cache", b"Host: other.example.org"),
        CHROME.replace(b"Pragma: no-cache", b"origin: https://other.example.org"),
        CHROME.replace(b"Pragma: no-cache", b" folded"),
        CHROME.replace(b"Pragma: no-cache", b": no name"),
        CHROME.replace(b"Pragma: no-cache", b"no colon"),
        CHROME.replace(b"Pragma: no-cache", b"Pragma: \x00"),
        CHROME.replace(b"Pragma: no-cache", b"Pragma: a\rb"),
        CHROME.replace(b"Pragma: no-cache", b"Pragma: \xc3\xa4"),
        CHROME.replace(b"Pragma: no-cache", b"Content-Length: 5"),
        CHROME.replace(b"Pragma: no-cache", b"Content-Length: 0"),
        CHROME.replace(b"Pragma: no-cache", b"transfer-encoding: chunked"),
        CHROME.replace(b"Pragma: no-cache", b"Expect: 100-continue"),
        CHROME.replace(b"Pragma: no-cache", b"Sec-WebSocket-Key1: x"),
        CHROME.replace(b"no-cache", b"x" * HEAD_MAX_BYTES, 1),
        CHROME.replace(b"Pragma: no-cache\r\n", b"".join(b"A%d: a\r\n" % at for at in range(FIELDS_MAX))),
    ],
)
def test_what_is_unusual_is_left_to_aiohttp(data: bytes) -> None:
    assert read_head(data, "/ws") is None


_LINES = st.sampled_from(
    [
        b"Host: x", b"host:y", b"Host: ", b"Upgrade: websocket", b"upgrade: WebSocket ", b"Upgrade: h2c",
        b"Upgrade:\twebsocket", b"Connection: Upgrade", b"Connection: keep-alive, upgrade", b"Connection: close",
        b"Connection:", b"Sec-WebSocket-Version: 13", b"Origin: https://a.example", b"Sec-WebSocket-Key1: a",
        b"Content-Length: 0", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity",
        b"Content-Encoding: gzip", b"Expect: x", b"TE: trailers", b"Trailer: a", b"HTTP2-Settings: AAMAAABk",
        b"Proxy-Connection: upgrade", b"Keep-Alive: 5", b"X!#$%&'*+-.^_`|~: 1", b"X (Y): 1", b"X\x0b: 1", b"X: a: b",
        b"X:  a  b  ", b" X: 1", b"X", b"", b"X: \x7f", b"X: \xff", b"Cookie: a=1; b=\"\\\"", b"X\xc3\xa4: 1",
    ]
)  # fmt: skip
_TARGETS = st.sampled_from(
    [
        b"/ws",
        b"/ws?",
        b"/ws?a=b&c=%20",
        b"/ws?a?b",
        b"/ws/..",
        b"/./ws",
        b"/ws;a",
        b"/ws?#x",
        b"/ws?%",
        b"/ws?[1]",
        b"*",
    ]
)


@given(
    target=_TARGETS,
    version=st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.1 ", b"http/1.1"]),
    lines=st.lists(_LINES, max_size=8),
    is_whole=st.booleans(),
    noise=st.one_of(st.none(), st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=2))),
    rest=st.binary(max_size=5),
)
def test_what_it_reads_aiohttp_reads_likewise(
    target: bytes,
    version: bytes,
    lines: list[bytes],
    is_whole: bool,
    noise: tuple[int, bytes] | None,
    rest: bytes,
) -> None:
    if is_whole:
        lines = [b"Host: x", b"Upgrade: websocket", b"Connection: Upgrade", *lines]
    data = b"\r\n".join([b"GET " + target + b" " + version, *lines, b"", b""])
    if noise is not None:
        at, inserted = noise
        data = data[:at] + inserted + data[at:]
    found = read_head(data + rest, "/ws")
    if found is None:
        return
    expected = by_aiohttp(data + rest)
    fields, size = found
    assert expected == ("/ws", fields._values, (data + rest)[size:])


def test_the_tests_own_handshake_is_read() -> None:
    assert read(handshake_head()) is not None
