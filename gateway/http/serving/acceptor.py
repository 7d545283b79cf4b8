"""Acceptor: accepts the connections of listening sockets, no faster than their first requests can be answered.

When a node dies, thousands of clients come to another one at once. libuv accepts one connection in each iteration of
the loop: few while a node is busy, but thousands before the first of them has sent its request. Then it answered all
requests in one iteration, and its other clients received nothing for half a second.

Rules:
- Of the accepted connections, at most AHEAD have not sent a request yet. Clients that send none delay the others for
  PAUSE_S at most: then the next AHEAD are accepted.
- The others wait in the kernel's backlog. If they would wait longer than WAIT_MAX_S there, connections are refused, and
  told when to come again: clients give up after some seconds, and would be served in vain.
"""

import asyncio
import errno
import math
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from snorky.gateway.http.serving.accept_gate import AcceptGate
from snorky.gateway.http.serving.listen import BACKLOG

__all__ = ["Acceptor"]

PORTION: Final = 8  # accepted in one iteration
AHEAD: Final = 128
PAUSE_S: Final = 0.02
WAIT_MAX_S: Final = 7.0  # our libraries give up after 10 s
MEASURE_S: Final = 1.0  # over which it measures how many are accepted per second
STANDSTILL_S: Final = 0.5  # without a portion: the whole process has stood still, which is no rate
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
EXHAUSTED_PAUSE_S: Final = 1.0
_UNACKED: Final = struct.Struct("24xI")  # tcpi_unacked of Linux' struct tcp_info: of a listening socket, its backlog

_log = structlog.get_logger("snorky.http")


@dataclass(slots=True)
class _Measure:
    """What was accepted since a time, while others waited."""

    began_s: float
    last_s: float = math.inf  # of the last portion
    accepted: int = 0


class Acceptor:
    """Accepts for one port. make: makes the protocol of a connection. gate: refuses it, if the port is too busy."""

    def __init__(self, make: Callable[[], asyncio.Protocol], gate: AcceptGate) -> None:
        self._make = make
        self._gate = gate
        self._sockets: list[socket.socket] = []
        self._taking: set[asyncio.Task[Any]] = set()
        self._ahead = 0  # accepted in this turn, without a request; those of earlier turns are forgotten
        self._timer: asyncio.TimerHandle | None = None  # while paused
        self._is_exhausted = False  # it is paused because there are no descriptors
        self._measures: dict[socket.socket, _Measure] = {}  # of the sockets at which connections wait

    def listen(self, bound: socket.socket) -> None:
        """Accept the connections of a listening socket, which is closed by `stop`."""
        self._sockets.append(bound)
        self._watch(bound)

    def on_request(self) -> None:
        """Note that a connection has sent a request, or has ended without one."""
        if self._ahead:
            self._ahead -= 1
            if self._timer is not None and self._ahead <= AHEAD // 2 and not self._is_exhausted:
                self._resume()

    async def stop(self) -> None:
        """Accept those that wait in the backlog, because closing it resets them; then stop listening. Idempotent."""
        sockets, self._sockets = self._sockets, []  # from here on neither a pause nor its end finds one
        self._end_pause()
        for bound in sockets:
            asyncio.get_running_loop().remove_reader(bound)
        for bound in sockets:
            for _ in range(BACKLOG // PORTION):  # as many as can wait, and no later ones
                if self._accept(bound, PORTION) < PORTION:
                    break
                await asyncio.sleep(0)
            bound.close()
        self._end_pause()
        while self._taking:
            await asyncio.wait(tuple(self._taking))

    def _watch(self, bound: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(bound, self._on_ready, bound)

    def _on_ready(self, bound: socket.socket) -> None:
        # of a full node each is refused, and closed before the next one: the descriptors suffice for few at a time
        wanted = min(PORTION if self._gate.has_room(2 * PORTION) else 1, AHEAD - self._ahead)
        accepted = self._accept(bound, wanted)
        self._measure(bound, accepted, is_all=accepted < wanted)
        if self._ahead >= AHEAD:
            self._pause(PAUSE_S)

    def _accept(self, bound: socket.socket, count: int) -> int:
        """Accept so many connections, or as many as wait. Returns how many."""
        loop = asyncio.get_running_loop()
        for number in range(count):
            try:
                connection, _ = bound.accept()
            except BlockingIOError:
                return number
            except OSError as error:  # else the connection has failed before it was accepted
                if error.errno in EXHAUSTED:
                    _log.error("connections cannot be accepted", error=str(error), pause_s=EXHAUSTED_PAUSE_S)
                    self._is_exhausted = True
                    self._pause(EXHAUSTED_PAUSE_S)
                return number
            connection.setblocking(False)
            self._ahead += 1
            task = loop.create_task(loop.connect_accepted_socket(self._make, connection))
            self._taking.add(task)
            task.add_done_callback(self._on_taken)
        return count

    def _on_taken(self, task: "asyncio.Task[Any]") -> None:
        self._taking.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            _log.info("an accepted connection has ended at once", error=str(error))

    def _measure(self, bound: socket.socket, accepted: int, *, is_all: bool) -> None:
        """Estimate how long those in the backlog wait, and have too many refused. is_all: none is left in it."""
        waiting = 0 if is_all else _waiting_at(bound)
        if not waiting:
            self._measures.pop(bound, None)
            return
        now_s = asyncio.get_running_loop().time()
        measure = self._measures.get(bound)
        if measure is None or now_s - measure.last_s > STANDSTILL_S:
            measure = self._measures[bound] = _Measure(now_s)
        elapsed_s = now_s - measure.began_s
        if elapsed_s >= MEASURE_S:
            in_time = round(WAIT_MAX_S * measure.accepted / elapsed_s)
            if waiting > in_time:
                self._gate.refuse_next(waiting - in_time, waiting * elapsed_s / measure.accepted)
            measure = self._measures[bound] = _Measure(now_s)
        measure.last_s = now_s
        measure.accepted += accepted

    def _pause(self, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._end_pause()
        for bound in self._sockets:
            loop.remove_reader(bound)
        self._timer = loop.call_later(pause_s, self._resume)

    def _resume(self) -> None:
        self._end_pause()
        self._ahead, self._is_exhausted = 0, False
        for bound in self._sockets:
            self._watch(bound)

    def _end_pause(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _waiting_at(bound: socket.socket) -> int:
    """Return how many connections wait to be accepted; 0 also where the system does not tell."""
    if sys.platform != "linux":
        return 0
    return int(_UNACKED.unpack(bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED.size))[0])
