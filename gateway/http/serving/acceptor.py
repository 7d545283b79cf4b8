"""Acceptor: accepts the connections of a port, and reads their first requests no faster than they can be answered.

When a node dies, thousands of clients come to another one at once. If their requests were all read in one iteration of
the event loop, the node's other clients would receive nothing for half a second.

Rules:
- A listening socket has several handles, because libuv accepts one connection for each in an iteration. With one, a
  node whose iterations take 10 ms would accept 100 connections a second.
- At most AHEAD connections are read that have not sent a request yet. The others wait in a line, unread. Clients that
  send none delay the line for PAUSE_S at most: then the next AHEAD are read.
- If more wait than can be answered within WAIT_MAX_S, further connections are refused, and told when to come
  again: clients give up after some seconds, and would be served in vain.
"""

import asyncio
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from snorky.gateway.http.serving.accept_gate import AcceptGate
from snorky.gateway.http.serving.listen import BACKLOG

__all__ = ["Acceptor", "Reader"]

HANDLES_MAX: Final = 16  # more than handshakes are answered in one iteration, so that few wait in the backlog
QUIET_ITERATIONS: Final = 3  # without a new connection: asyncio's own loop makes one after two
STOP_MAX_S: Final = 2.0
PORTION: Final = 16  # read in one iteration
AHEAD: Final = 128
PAUSE_S: Final = 0.02
WAIT_MAX_S: Final = 7.0  # our libraries give up after 10 s
MEASURE_S: Final = 1.0  # over which it measures how many requests are answered per second
STANDSTILL_S: Final = 0.5  # without any: the whole process has stood still, which is no rate


class Reader(Protocol):
    """The protocol of a connection that waits to be read."""

    def begin(self) -> None:
        """Read it."""


@dataclass(slots=True)
class _Measure:
    """How many requests were answered since a time, while others waited. last_s: when the last one was."""

    began_s: float
    last_s: float = math.inf
    count: int = 0


class Acceptor:
    """Accepts for one port. make: makes the protocol of a connection. gate: refuses it, if too many wait."""

    def __init__(self, make: Callable[[], asyncio.Protocol], gate: AcceptGate) -> None:
        self._make = make
        self._gate = gate
        self._servers: list[asyncio.Server] = []
        self._line: dict[Reader, None] = {}  # in order
        self._ahead = 0  # read in this turn, without a request; those of earlier turns are forgotten
        self._timer: asyncio.TimerHandle | None = None  # set while the line waits
        self._next: asyncio.Handle | None = None  # set while some begin in the next iteration
        self._measure: _Measure | None = None

    def __len__(self) -> int:
        """Return how many wait in the line."""
        return len(self._line)

    async def listen(self, bound: socket.socket) -> None:
        """Accept the connections of a listening socket, which is closed by `stop`."""
        loop = asyncio.get_running_loop()
        handles = min(HANDLES_MAX, self._gate.at_once_max)
        for same in (bound, *(bound.dup() for _ in range(1, handles))):
            self._servers.append(await loop.create_server(self._make, sock=same, backlog=BACKLOG))

    async def stop(self) -> None:
        """Accept those that wait in the backlog, because closing it resets them; then stop listening. Idempotent."""
        quiet, accepted = 0, -1
        clock = asyncio.get_running_loop().time
        until_s = clock() + STOP_MAX_S
        while quiet < QUIET_ITERATIONS and clock() < until_s:
            before, accepted = accepted, self._gate.accepted
            quiet = quiet + 1 if accepted == before else 0
            await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        while self._line:
            self._ahead = 0
            self._begin_soon()
            await asyncio.sleep(0)
        if self._timer is not None:
            self._timer.cancel()

    # -- called for each connection --------------------------------------------------------------------------

    def may_read(self, reader: Reader) -> bool:
        """Return True if a new connection may be read now; else its `begin` is called later."""
        if self._ahead < AHEAD and not self._line:
            self._ahead += 1
            return True
        self._line[reader] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._turn)
        return False

    def on_request(self) -> None:
        """Note that a connection has sent a request, or has ended without one while it was read."""
        if self._ahead:
            self._ahead -= 1
        if self._line:
            self._begin_soon()

    def on_answered(self, waiting: int) -> None:
        """Count a request that is answered, and estimate how long a new connection would wait.

        waiting: how many requests have come and are not answered. Those in the line are added.
        """
        waiting += len(self._line)
        if not waiting:
            self._measure = None
            if self._gate.wait_s:
                self._gate.refuse_new(0.0, for_s=0.0)
            return
        now_s, measure = asyncio.get_running_loop().time(), self._measure
        if measure is None or now_s - measure.last_s > STANDSTILL_S:
            measure = self._measure = _Measure(now_s)
        measure.last_s = now_s
        measure.count += 1
        elapsed_s = now_s - measure.began_s
        if elapsed_s >= MEASURE_S:
            wait_s = waiting * elapsed_s / measure.count
            self._gate.refuse_new(wait_s if wait_s > WAIT_MAX_S else 0.0, for_s=2 * MEASURE_S)
            self._measure = _Measure(now_s)

    def leave(self, reader: Reader) -> None:
        """Forget a connection that has ended, or is read after all. No effect if it does not wait."""
        self._line.pop(reader, None)

    # -- the line ----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Read others than those that have sent nothing for a while."""
        self._ahead = 0
        self._timer = None
        if self._line:
            self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._turn)
            self._begin_soon()

    def _begin_soon(self) -> None:
        if self._next is None:
            self._next = asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """Read the next ones, a portion in each iteration of the loop."""
        self._next = None
        for _ in range(PORTION):
            if not self._line or self._ahead >= AHEAD:
                return
            reader = next(iter(self._line))
            del self._line[reader]
            self._ahead += 1
            reader.begin()
        if self._line:
            self._begin_soon()
