"""RespConnection: one connection to Redis. Commands are bytes; `hiredis.Reader` parses the replies, in bulk.

Rules:
- Replies are not passed on one by one: the owner of the wire gets `Reader.gets` once per read and calls it until it is
  empty (650-850 thousand messages per CPU-second; a coroutine per reply, as in redis-py, costs ten times that).
- `read_now` reads the socket itself, by a descriptor of its own: the number of the transport's may belong to another
  socket once it is closed. The transport finds the end of the stream; after an error that was read here, too.
- `on_lost` is called exactly once, when the wire is closed or lost; no other callback is called after it.
- Protocol RESP2, without HELLO, so that an ACL user needs few permissions: AUTH needs none, and CLIENT SETNAME, which
  only makes CLIENT LIST readable, may be denied.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any, cast

import hiredis

from snorky.gateway.redis.connection.address import RedisTarget

__all__ = ["ConnectionLost", "DialError", "Gets", "RespConnection", "ask", "command", "dial"]

Gets = Callable[[], object]  # hiredis.Reader.gets: the next reply, or False if none is complete

# A longer reply is not one of our messages (`message_max_bytes` is at most 16 MiB), and would be buffered until it is
# complete. It cannot be skipped, so the wire is closed.
REPLY_MAX_BYTES = 16 * 1024 * 1024 + 65_536
READ_NOW_MAX_BYTES = 65_536


class ConnectionLost(Exception):
    """A connection is closed, lost or unusable. The text is for logs and contains no secret."""


class DialError(ConnectionLost):
    """A connection could not be made, or Redis rejected it."""


def command(*words: bytes) -> bytes:
    """Encode one command in the Redis protocol."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class RespConnection(asyncio.Protocol):
    """An open connection. Made by `dial`; belongs to one owner on one event loop.

    consume: must call `gets` until it returns False (the object, not 0); if it raises WireError the wire is closed.
    on_writable: called when `is_congested` becomes false again. server: the connected server, set by `dial`.
    """

    def __init__(self, *, reply_max_bytes: int = REPLY_MAX_BYTES) -> None:
        self.consume: Callable[[Gets], None] = _discard
        self.on_lost: Callable[[ConnectionLost], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.server: RedisTarget | None = None
        self.is_open = False
        self.is_congested = False
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # done: socket closed
        self._is_paused = False
        self._is_processing = False
        self._own_fd: int | None = None  # for `read_now`; -1: it cannot read this transport's bytes
        self._reader = hiredis.Reader()
        self._reply_max_bytes = reply_max_bytes
        self._transport: asyncio.Transport | None = None

    def write(self, data: bytes) -> None:
        """Send bytes; never waits. They are discarded if the wire is closed (`on_lost` has been called)."""
        if self.is_open and self._transport is not None:
            self._transport.write(data)

    def close(self, error: ConnectionLost) -> None:
        """Abort the connection, even in the middle of replies; calls `on_lost` with error. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
        self._end(error)

    async def wait_closed(self) -> None:
        """Return when the socket is closed, after `close` or a loss. Can be called repeatedly, and cancelled."""
        await asyncio.wait({self._closed})

    def pause(self) -> None:
        """Stop reading; idempotent."""
        if self.is_open and self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again; idempotent."""
        if self.is_open and self._transport is not None and self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def read_now(self) -> None:
        """Process bytes that have arrived already, before the event loop reads them; not while paused, not with TLS."""
        if not self.is_open or self._is_paused or self._is_processing:
            return
        try:
            if self._own_fd is None:
                self._own_fd = self._duplicate()
            data = b"" if self._own_fd < 0 else os.read(self._own_fd, READ_NOW_MAX_BYTES)
        except OSError:  # nearly always BlockingIOError: nothing has arrived
            return
        try:
            if data:
                self.data_received(data)
        except Exception as error:  # the loop does the same: it is no error of the client in whose callback we are
            report = {"message": "a reply of Redis was not processed", "exception": error, "protocol": self}
            asyncio.get_running_loop().call_exception_handler(report)
            self.close(ConnectionLost(f"a reply was not processed: {error!r}"))

    def _duplicate(self) -> int:
        """Return a descriptor of the socket; -1: its bytes are not ours. Raises OSError: there are too many."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_extra_info("sslcontext") is not None:
            return -1
        return os.dup(transport.get_extra_info("socket").fileno())

    def _end(self, error: ConnectionLost) -> None:
        if not self.is_open:
            return
        self.is_open = False
        if self._own_fd is not None and self._own_fd >= 0:
            os.close(self._own_fd)
        self.consume = _discard
        self.on_writable = None
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost(error)

    # -- asyncio.Protocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        if not self.is_open:
            return
        self._is_processing = True
        try:
            self._reader.feed(data)
            self.consume(self._reader.gets)
            if self._reader.len() > self._reply_max_bytes:
                raise ConnectionLost(f"a reply is longer than {self._reply_max_bytes} bytes")
        except ConnectionLost as error:
            self.close(error)
        except (hiredis.HiredisError, MemoryError) as error:
            self.close(ConnectionLost(f"not the Redis protocol: {error}"))
        finally:
            self._is_processing = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionLost("closed by Redis" if exc is None else f"connection lost: {exc}"))
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        self.is_congested = True

    def resume_writing(self) -> None:
        self.is_congested = False
        if self.on_writable is not None:
            self.on_writable()


def _discard(gets: Gets) -> None:
    while gets() is not False:
        pass


async def dial(
    target: RedisTarget, *, name: str, timeout_s: float, reply_max_bytes: int = REPLY_MAX_BYTES
) -> RespConnection:
    """Connect, log in and name the connection; returns after at least one reply.

    A connect alone proves nothing, because the kernel accepts connections even for a frozen Redis. If the target's
    server may change it is looked up at each call.
    name: for CLIENT LIST, printable without spaces. Raises DialError: not reached within timeout_s, or rejected.
    """
    wire: RespConnection | None = None
    try:
        async with asyncio.timeout(timeout_s):
            server = await target.resolved()
            wire = await _connect(server, reply_max_bytes)
            wire.server = server
            await _log_in(wire, server, name)
        if not wire.is_open:
            raise DialError("connection lost while dialling")
    except BaseException as error:
        if wire is not None:
            wire.close(ConnectionLost("dialling failed"))
            await wire.wait_closed()  # one tick
        if isinstance(error, DialError) or not isinstance(error, Exception):
            raise
        text = f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
        raise DialError(text) from error
    return wire


async def ask(wire: RespConnection, *commands: bytes) -> list[Any]:
    """Send commands, each encoded by `command`, and return their answers. Only for a wire that has no owner yet.

    Raises DialError: the wire was lost; if Redis sent an error before that, its text.
    """
    replies: list[Any] = []
    answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def consume(gets: Gets) -> None:
        while (reply := gets()) is not False:
            replies.append(reply)
        if len(replies) >= len(commands) and not answered.done():
            answered.set_result(None)

    def on_lost(error: ConnectionLost) -> None:
        if not answered.done():
            refusal = next((str(reply) for reply in replies if isinstance(reply, hiredis.ReplyError)), str(error))
            answered.set_exception(DialError(refusal))

    wire.consume, wire.on_lost = consume, on_lost
    if not wire.is_open:
        raise DialError("closed by Redis")
    wire.write(b"".join(commands))
    await answered
    wire.consume, wire.on_lost = _discard, None
    return replies


async def _connect(target: RedisTarget, reply_max_bytes: int) -> RespConnection:
    loop = asyncio.get_running_loop()

    def make() -> RespConnection:
        return RespConnection(reply_max_bytes=reply_max_bytes)

    try:
        if target.path is not None:
            _, wire = await loop.create_unix_connection(make, target.path)
        else:
            hostname = target.host if target.tls is not None else None
            _, wire = await loop.create_connection(
                make, target.host, target.port, ssl=target.tls, server_hostname=hostname
            )
    except OSError as error:  # ssl.SSLError and socket.gaierror too
        raise DialError(str(error)) from error
    return wire


async def _log_in(wire: RespConnection, target: RedisTarget, name: str) -> None:
    """Authenticate and name the connection. Raises DialError: Redis rejected the credentials, or requires some."""
    greeting = [command(b"CLIENT", b"SETNAME", name.encode("ascii", "replace"))]
    if target.password is not None:
        words = [word.encode() for word in (target.username, target.password) if word is not None]
        greeting.insert(0, command(b"AUTH", *words))
    replies = await ask(wire, *greeting)
    for reply in replies:
        # The name is optional: continue if an ACL denies CLIENT SETNAME or a proxy does not know it.
        if isinstance(reply, hiredis.ReplyError) and not (
            reply is replies[-1] and len(replies) == len(greeting) and str(reply).startswith(("NOPERM", "ERR unknown"))
        ):
            raise DialError(str(reply))
