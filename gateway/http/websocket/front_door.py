"""FrontDoor: accepts the WebSocket handshakes of a public port without aiohttp, and gives it everything else.

    accepted -> the first read is a usual handshake -> `WebSocketHandler.accept` -> 101
                                                      \\-> refused -> aiohttp, with the verdict
             -> it is anything else -> aiohttp

A request costs aiohttp a parser, three tasks or futures, a timer and a request with its response: most of the CPU of a
connect. Here it costs one object, and a task only if authentication may wait.

Rules:
- The same method decides on both ways, once per handshake. A refused handshake goes to aiohttp with the verdict, so
  that its response has the same headers and limits as any other.
- aiohttp also gets the bytes that were read, and the time that the connection has waited for its request.
- While many connect at once, new connections wait unread (`Acceptor`), and handshakes wait to be decided (`Pace`).
- An operator's identify hook gets aiohttp's request: with one, all handshakes go through aiohttp.
"""

import asyncio
from collections.abc import Coroutine
from itertools import takewhile
from typing import Any, Final, cast

import structlog
from aiohttp import web

from snorky.gateway.connection.pace import Pace
from snorky.gateway.errors import ConnectionClosed
from snorky.gateway.http.serving.acceptor import Acceptor
from snorky.gateway.http.websocket.aiohttp_internals import JudgedHandler, give
from snorky.gateway.http.websocket.credentials import Asked, Identify
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.http.websocket.protocol import WebSocketProtocol
from snorky.gateway.http.websocket.request_head import Fields, read_head

__all__ = ["FrontDoor"]

_log = structlog.get_logger("snorky.http")

HEAD_MAX_BYTES: Final = 4_096  # of a request that is kept while its connection waits in the line
EARLY_MAX_BYTES: Final = 65_536  # messages that are kept while their handshake is decided; then reading stops


class FrontDoor:
    """Accepts the connections of a port. handler: of the handshakes for `path`.

    server: of aiohttp. header_timeout_s: for the head of the first request.
    """

    def __init__(self, handler: WebSocketHandler, server: web.Server, *, header_timeout_s: float, path: str) -> None:
        self.handler = handler
        self.path = path
        self.gate = handler.endpoint.gate
        self.acceptor = Acceptor(self, self.gate)
        self._pace = Pace()
        self._pace.tick = self.read_publications
        self._server = server
        self._header_timeout_s = header_timeout_s
        self._waiting: dict[Arrival, float] = {}  # with the deadline of their request, the earliest first
        self._deciding: dict[Arrival, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> asyncio.Protocol:
        """Make the protocol of a connection."""
        return Arrival(self)

    @property
    def connections(self) -> int:
        """How many wait here for their request, or for the decision on it."""
        return len(self.acceptor) + len(self._waiting) + len(self._pace) + len(self._deciding)

    async def stop(self, timeout_s: float) -> None:
        """Close the connections without a request, and end the decisions within timeout_s. Idempotent."""
        for arrival in tuple(self._waiting):
            arrival.transport.close()
        while len(self._pace):  # noqa: ASYNC110 - a portion in each iteration
            await asyncio.sleep(0)
        if tasks := tuple(self._deciding.values()):
            await asyncio.wait(tasks, timeout=timeout_s)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- called by arrivals ----------------------------------------------------------------------------------

    def wait_for_request(self, arrival: "Arrival") -> None:
        """Close a connection that sends no request in time."""
        due_s = asyncio.get_running_loop().time() + self._header_timeout_s
        self._waiting[arrival] = due_s
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(due_s, self._close_late)

    def lose(self, arrival: "Arrival") -> None:
        """Forget a connection that has ended, except for the decision on it. Idempotent."""
        if self._waiting.pop(arrival, None) is not None:
            self.acceptor.on_request()
        else:
            self.acceptor.leave(arrival)

    def leave(self, arrival: "Arrival") -> float | None:
        """Forget a connection. Returns the deadline of its request; None: it has sent one. Idempotent."""
        self._deciding.pop(arrival, None)
        due_s = self._waiting.pop(arrival, None)
        if due_s is not None:
            self.acceptor.on_request()
        return due_s

    def decide(self, arrival: "Arrival") -> None:
        """Decide on a handshake: in this iteration of the loop or soon, and in a task if authentication may wait."""
        self.lose(arrival)
        self._pace.run(lambda: self._decide(arrival))

    def read_publications(self) -> None:
        """Give publications a turn. See `InterleavedReads.tick`."""
        self.handler.endpoint.node.interleaved_reads.tick()

    def _decide(self, arrival: "Arrival") -> None:
        self.acceptor.on_answered(len(self._pace))
        if arrival.transport.is_closing():
            return
        if self.handler.may_wait:
            self._deciding[arrival] = asyncio.get_running_loop().create_task(arrival.decide())
        else:
            _run_at_once(arrival.decide())

    def pass_on(self, arrival: "Arrival", data: bytes, verdict: Exception | None = None) -> None:
        """Give a connection to aiohttp. data: what was read. verdict: on the handshake that it begins with."""
        due_s, transport = self.leave(arrival), arrival.transport
        if transport.is_closing():
            self._report(arrival, verdict)
            return
        http = JudgedHandler(self._server, verdict)
        self.gate.pass_on(arrival, http)
        give(http, transport, data, due_s)

    def _report(self, arrival: "Arrival", verdict: Exception | None) -> None:
        """Count or log the verdict on a handshake whose client has gone, as aiohttp's way does."""
        if isinstance(verdict, HandshakeRefused):
            self.handler.count_refused(arrival, verdict)
        elif verdict is not None:
            _log.error("handshake failed", exc_info=verdict)

    def _close_late(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for arrival in list(takewhile(lambda each: self._waiting[each] <= now_s, self._waiting)):
            arrival.transport.close()
            self.lose(arrival)
        due_s = next(iter(self._waiting.values()), None)
        self._timer = None if due_s is None else loop.call_at(due_s, self._close_late)


def _run_at_once(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that waits for nothing; a task would cost 4 % of a connect. Raises RuntimeError: it waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("a handshake waits although nothing asks it to: see WebSocketHandler.may_wait")


class Arrival(asyncio.Protocol):
    """A connection until its first request is answered or given to aiohttp. See `Caller`."""

    __slots__ = (
        "_data",
        "_door",
        "_head_bytes",
        "_is_in_line",
        "_is_refused",
        "_is_taken",
        "headers",
        "peer",
        "transport",
    )

    is_plain = True  # `read_head` reads no other

    headers: Fields
    transport: asyncio.Transport

    def __init__(self, door: FrontDoor) -> None:
        self._door = door
        self._data = b""  # the handshake that is being decided, and the bytes after it
        self._head_bytes = 0
        self._is_in_line = self._is_refused = self._is_taken = False
        self.peer = ""

    # -- asyncio.Protocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it."""
        self._door.read_publications()
        self.transport = cast(asyncio.Transport, transport)
        self.peer, self._is_refused = self._door.gate.enter(self, self.transport)
        if self._is_refused or self._door.acceptor.may_read(self):
            self._door.wait_for_request(self)
            return
        self._is_in_line = True
        asyncio.get_running_loop().call_soon(self._pause)  # later: uvloop begins to read after this call

    def begin(self) -> None:
        """See `Reader`."""
        self._is_in_line = False
        self._door.wait_for_request(self)
        if self.transport.is_closing():
            return
        self.transport.resume_reading()
        if self._data:  # read before the pause
            data, self._data = self._data, b""
            self.data_received(data)

    def _pause(self) -> None:
        if self._is_in_line and not self.transport.is_closing():
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting it. A decision in progress ends by itself, as in aiohttp."""
        self._door.gate.leave(self)
        self._door.lose(self)

    def data_received(self, data: bytes) -> None:
        """Read the first request, or bytes after a handshake that is being decided."""
        self._door.read_publications()
        if self._is_refused:  # it is closed soon, and uvloop may read before
            return
        if self._data or (self._is_in_line and len(data) <= HEAD_MAX_BYTES):
            self._data += data
            if len(self._data) >= EARLY_MAX_BYTES:
                self.transport.pause_reading()
            return
        if self._is_in_line:  # too much to keep
            self._door.acceptor.leave(self)
            self.begin()
        head = None if self._door.handler.identify_hook is not None else read_head(data, self._door.path)
        if head is None:
            self._door.pass_on(self, data)
            return
        self._data = data
        self.headers, self._head_bytes = head
        self._door.decide(self)

    async def decide(self) -> None:
        """Accept the handshake, or give it to aiohttp."""
        try:
            await self._door.handler.accept(self)
        except ConnectionClosed:
            pass
        except Exception as refused:  # errors too: aiohttp logs them, and answers with 500
            if self._is_taken:
                self.transport.abort()
                raise
            self._door.pass_on(self, self._data, refused)
        except BaseException:
            self.transport.abort()
            raise
        finally:
            self._door.leave(self)

    # -- Caller: called by the handler -------------------------------------------------------------------------

    def asked(self, hook: Identify | None) -> Asked | None:
        """See `Caller`. There is no hook."""
        return None

    def take_over(self, protocol: WebSocketProtocol, response: bytes) -> None:
        """See `Caller`."""
        transport, early = self.transport, self._data[self._head_bytes :]
        self._is_taken = True
        self._door.leave(self)
        self._door.gate.leave(self)
        if not transport.is_reading():
            transport.resume_reading()
        transport.write(response)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if early:
            protocol.data_received(early)
