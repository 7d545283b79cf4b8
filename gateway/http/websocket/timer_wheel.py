"""TimerWheel: one timer for the pings and deadlines of all connections of a node.

Rules:
- Each connection is visited once per `ping_interval_s`: if nothing came since the last visit, and it does not receive
  our data either (`peer_progress.py`), it is aborted; otherwise it is pinged. So a half-open connection is closed after
  two intervals at most (20 s by default).
- A message that has begun has a deadline (`expect`): a callback reports when it has passed.
- A closing connection is aborted when its deadline has passed: a peer cannot keep its memory in use.
- The visits are spread over the interval, so that no tick pings all connections.
"""

import asyncio
from collections.abc import Callable
from itertools import takewhile
from typing import Final, Protocol

__all__ = ["TimedConnection", "TimerWheel"]

TICK_S: Final = 0.25
CLOSE_TIMEOUT_S: Final = 1.5  # for the peer's close frame; a slow consumer's memory is freed within 2 s


class TimedConnection(Protocol):
    """A connection's protocol, which the wheel visits."""

    slot: int

    def beat(self) -> None:
        """Ping, or abort if the peer seems dead."""

    def abort(self) -> None:
        """Close immediately."""


class TimerWheel:
    """Visits every connection once per ping_interval_s, and aborts those whose close takes too long."""

    def __init__(self, ping_interval_s: float) -> None:
        self.interval_s = ping_interval_s
        self._size = max(1, round(ping_interval_s / TICK_S))  # slots per round
        self._tick_s = ping_interval_s / self._size
        self._slots: dict[int, set[TimedConnection]] = {}  # only slots that are not empty
        self._now = 0  # slot visited last
        self._next = 0  # slot assigned last: connections opened in one tick get different slots
        self._ending: dict[TimedConnection, float] = {}
        self._expected: dict[
            TimedConnection, tuple[float, Callable[[], None]]
        ] = {}  # ordered by deadline, because all have the same timeout
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: TimedConnection) -> None:
        """Visit it once per round from now on."""
        self._next = (self._next + 1) % self._size
        connection.slot = self._next
        self._slots.setdefault(self._next, set()).add(connection)
        if self._timer is None:
            self._schedule()

    def remove(self, connection: TimedConnection) -> None:
        """Stop visiting it. Idempotent."""
        self._take_out(connection)
        self._ending.pop(connection, None)
        self._expected.pop(connection, None)

    def expect(self, connection: TimedConnection, timeout_s: float, on_late: Callable[[], None]) -> None:
        """Call `on_late` after timeout_s, unless `came` is called before. timeout_s: always the same."""
        self._expected.pop(connection, None)  # move it to the end of the order
        self._expected[connection] = asyncio.get_running_loop().time() + timeout_s, on_late
        if self._timer is None:
            self._schedule()

    def came(self, connection: TimedConnection) -> None:
        """Cancel `expect`. Idempotent."""
        self._expected.pop(connection, None)

    def end_soon(self, connection: TimedConnection, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Abort it unless it is removed within timeout_s."""
        self._expected.pop(connection, None)
        self._take_out(connection)  # a ping after a close frame is a protocol error
        self._ending[connection] = asyncio.get_running_loop().time() + timeout_s
        if self._timer is None:
            self._schedule()

    def _take_out(self, connection: TimedConnection) -> None:
        slot = self._slots.get(connection.slot)
        if slot is not None:
            slot.discard(connection)
            if not slot:
                del self._slots[connection.slot]

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._ending or self._slots or self._expected:  # otherwise the timer stops until a connection is added
            self._schedule()
        self._now = (self._now + 1) % self._size
        for connection in tuple(self._slots.get(self._now, ())):
            connection.beat()
        if self._expected:
            now_s = asyncio.get_running_loop().time()
            for connection in list(takewhile(lambda each: self._expected[each][0] <= now_s, self._expected)):
                self._expected.pop(connection)[1]()
        if self._ending:
            now_s = asyncio.get_running_loop().time()
            for connection in [connection for connection, deadline_s in self._ending.items() if deadline_s <= now_s]:
                del self._ending[connection]
                connection.abort()
