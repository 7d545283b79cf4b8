"""ResponseStream: frames queued for one HTTP response, of a SockJS session, also of another node, or an event stream.

Rules:
- The session never waits; the writer of the response takes all queued frames, so that one tick's frames are one write.
- It ends once: by `end` (queued frames are written first) or `lose` (the client has gone).
- After `end` the client may still go before the queued frames are written: only `finish` says that they are.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Final, Protocol

from aiohttp import web

__all__ = [
    "HIGH_WATER_BYTES",
    "FrameSink",
    "ResponseStream",
    "is_gone",
    "notice_dead_peer",
    "until_written",
    "write_stream",
]

HIGH_WATER_BYTES = 65_536  # queued in a stream; above it the connection queues in its own outbox

_KEEPALIVE: Final = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2), ("TCP_USER_TIMEOUT", 20_000))


class FrameSink(Protocol):
    """The receiver of a session's frames."""

    is_streaming: bool
    on_drained: Callable[[], None]
    on_lost: Callable[[], None]
    on_finished: Callable[[], None] | None

    def send(self, frame: bytes) -> None:
        """Queue one frame; never waits."""

    def end(self) -> None:
        """Accept no more frames: the response ends after the queued ones."""

    def buffered_bytes(self) -> int:
        """Return the number of bytes not written yet."""

    def is_gone(self) -> bool:
        """True if the client is known to have gone."""


def _nothing() -> None:
    """Do nothing: the default callback."""


class ResponseStream:
    """Frames of one response. is_gone: asks the response's transport.

    Callbacks of the session: on_drained; then one of on_finished (all frames were written) and on_lost (not all were).
    """

    def __init__(self, *, is_streaming: bool, is_gone: Callable[[], bool]) -> None:
        self.is_streaming = is_streaming
        self.is_gone = is_gone
        self.on_drained: Callable[[], None] = _nothing
        self.on_lost: Callable[[], None] = _nothing
        self.on_finished: Callable[[], None] | None = None  # None: nothing waits for the end of the writing
        self.on_written: Callable[[int], None] | None = None
        self._frames: list[bytes] = []
        self._bytes = 0
        self._is_ended = False
        self._is_over = False  # finished or lost
        self._woken = asyncio.Event()

    def send(self, frame: bytes) -> None:
        """Queue one frame."""
        if not self._is_ended:
            self._frames.append(frame)
            self._bytes += len(frame)
            self._woken.set()

    def end(self) -> None:
        """End after the queued frames."""
        self._is_ended = True
        self._woken.set()

    def finish(self) -> None:
        """Record that all frames of an ended stream were written."""
        if not self._is_over:
            self._is_over = True
            if self.on_finished is not None:
                self.on_finished()

    def lose(self) -> None:
        """Handle that the client has gone; calls `on_lost`, unless all was written."""
        was_over, self._is_over = self._is_over, True
        self._is_ended = True
        self._frames.clear()
        self._woken.set()
        if not was_over:
            self.on_lost()

    def buffered_bytes(self) -> int:
        """Return the number of bytes queued and not written yet."""
        return self._bytes

    async def take(self) -> list[bytes]:
        """Wait for frames and return them; empty at the end. The caller must call `wrote` for their bytes."""
        while not self._frames and not self._is_ended:
            self._woken.clear()
            await self._woken.wait()
        frames, self._frames = self._frames, []
        return frames

    def wrote(self, size: int) -> None:
        """Record that this many bytes of frames were written to the response."""
        was_high = self._bytes > HIGH_WATER_BYTES
        self._bytes -= size
        if self.on_written is not None:
            self.on_written(size)
        if was_high and self._bytes <= HIGH_WATER_BYTES:
            self.on_drained()


async def write_stream(
    request: web.Request,
    stream: ResponseStream,
    headers: Mapping[str, str],
    prelude: bytes,
    pieces: Callable[[bytes], Iterable[bytes]],
    *,
    keeps_alive: bool = True,
) -> web.StreamResponse:
    """Write a response: the prelude, then the frames of a stream until it ends. pieces: encodes one frame, in parts.

    keeps_alive: the HTTP connection may serve further requests. Raises ConnectionError: the client has gone.
    """
    notice_dead_peer(request)
    response = web.StreamResponse(headers={**headers, "X-Accel-Buffering": "no"})
    if not keeps_alive:
        response.force_close()
    await response.prepare(request)
    await response.write(prelude)
    while frames := await stream.take():
        unwritten = sum(map(len, frames))
        for part in _joined(chain.from_iterable(map(pieces, frames))):
            await response.write(part)
            done = min(len(part), unwritten)  # a frame may be encoded longer
            unwritten -= done
            stream.wrote(done)
        stream.wrote(unwritten)
    if stream.on_finished is not None:
        await until_written(request)
    stream.finish()  # before the end: a client that has read enough may close the response now
    await response.write_eof()
    return response


async def until_written(request: web.Request) -> None:
    """Wait until the kernel has all that was written: then it reaches the client even if this process is killed.

    Raises ConnectionError: the client has gone.
    """
    transport, writer = request.transport, request.writer
    if transport is None:
        raise ConnectionResetError
    if not transport.get_write_buffer_size():
        return
    transport.set_write_buffer_limits(high=0)
    try:
        await writer.drain()
    finally:
        if not transport.is_closing():
            transport.set_write_buffer_limits()
    if request.protocol.writing_paused:  # it was lost before the buffer was empty
        raise ConnectionResetError


def _joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join small parts, because each write is one piece of a chunked response; divide large ones."""
    found: list[bytes] = []
    size = 0
    for part in parts:
        if len(part) > HIGH_WATER_BYTES:
            if found:
                yield b"".join(found)
            found, size = [], 0
            yield from (part[at : at + HIGH_WATER_BYTES] for at in range(0, len(part), HIGH_WATER_BYTES))
            continue
        found.append(part)
        size += len(part)
        if size > HIGH_WATER_BYTES:
            yield b"".join(found)
            found, size = [], 0
    if found:
        yield b"".join(found)


def is_gone(request: web.Request) -> bool:
    """Return True if the client has closed its connection."""
    return request.transport is None or request.transport.is_closing()


def notice_dead_peer(request: web.Request) -> None:
    """Make the kernel detect a peer that has gone silently: while the response is written, nothing is read."""
    found = None if request.transport is None else request.transport.get_extra_info("socket")
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
