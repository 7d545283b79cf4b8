"""A bare uvloop Protocol that echoes WebSocket messages: the least that Python pays for a message and its reply.

    python -m benchmarks.servers.echo_server

It expects what the receiver sends: a whole handshake in one read, then one unfragmented frame of text in each.
"""

import asyncio
import base64
import hashlib
import os
import re
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.servers.commands import answer, obey
from snorky.gateway.http.serving.listen import BACKLOG, listen, url_of
from snorky.gateway.http.websocket.masking import unmask
from snorky.gateway.protocol.ws_frames import text_frame

__all__: list[str] = []

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


class Echo(asyncio.Protocol):
    """One client."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        if self._is_open:
            start = 2 if data[1] & 0x7F < 126 else 4
            self._transport.write(text_frame(unmask(data[start + 4 :], data[start : start + 4])))
            return
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", data)
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID, usedforsecurity=False).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self._transport.write(head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        self._is_open = True


async def serve() -> None:
    (bound,) = listen("127.0.0.1", 0)
    await asyncio.get_running_loop().create_server(Echo, sock=bound, backlog=BACKLOG)
    answer(port=urlsplit(url_of(bound)).port or 0)
    await obey({})
    os._exit(0)


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
