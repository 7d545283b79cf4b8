"""Takes a connection over from aiohttp after the handshake, or gives one to it.

aiohttp has parsed, routed and authorised the request; afterwards a connection needs none of the state that
aiohttp keeps for it (14.7 KiB instead of 1.4 KiB, 0.5 ms instead of 0.32 ms of CPU per connect). So its transport
gets another protocol object, and aiohttp's protocol gets `connection_lost`.

Only this module and masking.py use aiohttp's internals; tests/unit/http/websocket/test_aiohttp_internals.py checks it
with the version that is pinned in pyproject.toml.
"""

import asyncio

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from snorky.gateway.errors import ConnectionClosed

__all__ = ["JudgedHandler", "give", "take_over", "verdict_on"]


class JudgedHandler(RequestHandler):
    """aiohttp's protocol of a connection that another protocol has accepted. verdict: see `verdict_on`."""

    __slots__ = ("verdict",)

    def __init__(self, server: web.Server, verdict: Exception | None) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **server._kwargs)
        self.verdict = verdict


def verdict_on(request: web.Request) -> Exception | None:
    """Return, once, why the handshake that a connection begins with is refused; None: it is not decided yet."""
    http = request.protocol
    if not isinstance(http, JudgedHandler):
        return None
    verdict, http.verdict = http.verdict, None
    return verdict


def give(http: RequestHandler, transport: asyncio.Transport, data: bytes, due_s: float | None) -> None:
    """Pass a connection to aiohttp. data: what was read. due_s: loop time by which it must have sent a request."""
    if not transport.is_reading():
        transport.resume_reading()
    transport.set_protocol(http)
    http.connection_made(transport)
    if due_s is not None and http._keepalive_handle is not None:
        http._keepalive_handle.cancel()
        http._next_keepalive_close_time = due_s
        http._keepalive_handle = asyncio.get_running_loop().call_at(due_s, http._process_keepalive)
    http.data_received(data)


def take_over(request: web.Request, protocol: asyncio.Protocol, response: bytes) -> web.StreamResponse:
    """Write `response` and pass the connection of an upgrade request to `protocol`, with the bytes already read.

    Returns what the handler must return. Raises ConnectionClosed: the client has gone.
    """
    http = request.protocol
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionClosed
    # bytes after the request: a client may send its first messages with the handshake
    early = http._message_tail
    http._message_tail = b""
    if http._reading_paused or http._buffer_paused:
        transport.resume_reading()
    transport.write(response)
    # before connection_lost: otherwise it closes the socket, and finish_response writes to it
    http.transport = None
    transport.set_protocol(protocol)
    http.connection_lost(None)  # aiohttp releases the request, its timers and its entry in the server
    protocol.connection_made(transport)
    if http.writing_paused:  # responses to earlier requests fill the transport: it will not call pause_writing again
        protocol.pause_writing()
    if early:
        protocol.data_received(early)
    return web.Response()  # never written: aiohttp has no transport any more and ends its task
