"""A WebSocket client that sends exactly the given bytes: frames made by hand, on a plain socket.

    client = await RawClient.open(host, port)
    response = await client.handshake()              # or client.send(b"any bytes at all")
    await client.send(frame(TEXT, b"hello"))
    opcode, payload = await client.receive()
    assert await client.closed() == 1002             # reads on until the end of the stream

Rules:
- It reads only when asked, so it can be as slow a consumer as a test needs.
- Every wait ends after DEADLINE_S, whatever the other side does.
"""

import asyncio
import json
import socket
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "DEADLINE_S",
    "KEY",
    "PING",
    "PONG",
    "TEXT",
    "RawClient",
    "Response",
    "close_payload",
    "deflated",
    "frame",
    "handshake_head",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
DEADLINE_S = 30.0
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
_MASK = b"\x37\xfa\x21\x3d"  # RFC 6455 5.7


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    mask: bytes = _MASK,
    length: int | None = None,
    length_bytes: int | None = None,
) -> bytes:
    """Make one frame of a client. length: declared, if not the payload's; length_bytes: 0, 2 or 8, if not minimal."""
    declared = len(payload) if length is None else length
    if length_bytes is None:
        length_bytes = 0 if declared < 126 else 2 if declared < 65536 else 8
    head = bytes(((0x80 if fin else 0) | rsv << 4 | opcode,))
    bit = 0x80 if masked else 0
    if length_bytes == 0:
        head += bytes((bit | declared,))
    elif length_bytes == 2:
        head += struct.pack("!BH", bit | 126, declared)
    else:
        head += struct.pack("!BQ", bit | 127, declared)
    if not masked:
        return head + payload
    size = len(payload)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def close_payload(code: int, reason: bytes = b"") -> bytes:
    """Make the payload of a close frame."""
    return struct.pack("!H", code) + reason


def deflated(message: bytes) -> bytes:
    """Compress as permessage-deflate without context takeover does (RFC 7692 7.2.1)."""
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(message) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


def handshake_head(
    headers: Mapping[str, str | None] | None = None, *, host: str = "127.0.0.1", path: str = "/ws", method: str = "GET"
) -> bytes:
    """Make a handshake request. headers: replace or extend the right ones; None omits one."""
    all_headers: dict[str, str | None] = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **(headers or {}),
    }
    fields = [f"{name}: {value}" for name, value in all_headers.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fields, "", ""]).encode("latin-1")


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response. headers: names in lower case."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class RawClient:
    """One connection to a server. `received`: bytes that were read and not consumed yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.is_ended = False  # the server has closed its side
        self.inflates = False  # decompress RSV1 frames
        self.was_compressed = False  # the last frame
        self.sees_pings = False  # otherwise pings are skipped and not answered

    @classmethod
    async def open(cls, host: str, port: int, *, receive_buffer_bytes: int | None = None) -> Self:
        """Connect. receive_buffer_bytes: of the kernel; small for a slow consumer."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.sock.close()

    def reset(self) -> None:
        """Close the socket with a reset: the server's next read or write fails."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def end(self) -> None:
        """Shut down the sending side and keep reading."""
        self.sock.shutdown(socket.SHUT_WR)

    # -- bytes -----------------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send any bytes; ConnectionError if the server has closed."""
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def _read(self) -> bool:
        """Read some more; False at the end of the stream."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
            except ConnectionError:
                data = b""
        self.received += data
        self.is_ended = not data
        return not self.is_ended

    async def take(self, size: int) -> bytes:
        """Consume exactly that many bytes. Raises EOFError."""
        while len(self.received) < size:
            if not await self._read():
                raise EOFError(f"the server closed; {bytes(self.received[:200])!r} was left")
        taken = bytes(self.received[:size])
        del self.received[:size]
        return taken

    async def until_end(self) -> bytes:
        """Read everything up to the end of the stream."""
        while not self.is_ended and await self._read():
            pass
        rest = bytes(self.received)
        self.received.clear()
        return rest

    # -- HTTP ------------------------------------------------------------------------------------------------

    async def response(self) -> Response:
        """Read one HTTP response. Raises EOFError: the server closed instead."""
        while (end := self.received.find(b"\r\n\r\n")) < 0:
            if not await self._read():
                raise EOFError(f"no whole response: {bytes(self.received[:200])!r}")
        lines = (await self.take(end + 4)).decode("latin-1").split("\r\n")
        fields = [line.partition(":") for line in lines[1:] if line]
        headers = {name.lower(): value.strip() for name, _, value in fields}
        body = await self.take(int(headers.get("content-length", 0)))
        return Response(int(lines[0].split()[1]), headers, body)

    async def handshake(self, headers: Mapping[str, str | None] | None = None, *, early: bytes = b"") -> Response:
        """Request an upgrade; `early` is sent with the request."""
        await self.send(handshake_head(headers) + early)
        response = await self.response()
        self.inflates = "permessage-deflate" in response.headers.get("sec-websocket-extensions", "")
        return response

    # -- frames ----------------------------------------------------------------------------------------------

    async def receive(self) -> tuple[int, bytes]:
        """Read one frame of the server and check it against the rules for servers. Raises EOFError."""
        opcode, payload = await self._frame()
        while opcode == PING and not self.sees_pings:
            opcode, payload = await self._frame()
        return opcode, payload

    async def _frame(self) -> tuple[int, bytes]:
        first, second = await self.take(2)
        assert first & 0x80, "servers of ours do not fragment"
        assert not second & 0x80, "RFC 6455 5.1: a server must not mask"
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", await self.take(2))
            assert length >= 126
        elif length == 127:
            (length,) = struct.unpack("!Q", await self.take(8))
            assert length >= 65536
        payload = await self.take(length)
        self.was_compressed = bool(first & 0x40)
        if self.was_compressed:
            assert self.inflates, "compressed without having been asked"
            payload = zlib.decompressobj(wbits=-15).decompress(payload + b"\x00\x00\xff\xff")
        assert not first & 0x30
        return first & 0x0F, payload

    async def message(self) -> Any:
        """Read the next JSON message, skipping pings. Raises EOFError."""
        while True:
            opcode, payload = await self.receive()
            if opcode == TEXT:
                return json.loads(payload)
            assert opcode in (PING, PONG), (opcode, payload)

    async def say(self, value: Any) -> None:
        """Send one JSON message."""
        await self.send(frame(TEXT, json.dumps(value).encode()))

    async def call(self, command: str, call_id: Any = 1, *, service: str = "pubsub", **params: Any) -> Any:
        """Call a command and return its answer; messages before that are dropped."""
        await self.say({"service": service, "message": {"command": command, "params": params, "callId": call_id}})
        while True:
            message = (await self.message())["message"]
            if message.get("callId") == call_id and message["type"] in ("response", "error"):
                return message

    async def closed(self) -> int | None:
        """Read to the end of the stream; returns the code of the server's close frame, None if there was none.

        Answers the close frame as a client must, checks that the server sends nothing after it, and closes.
        """
        try:
            while True:
                opcode, payload = await self.receive()
                if opcode == CLOSE:
                    break
        except EOFError:
            return None
        try:
            await self.send(frame(CLOSE, payload[:2]))
        except ConnectionError:
            pass  # it has closed already, as a server may
        assert await self.until_end() == b"", "bytes after the close frame"
        self.close()
        return int.from_bytes(payload[:2], "big") if payload else 1005
