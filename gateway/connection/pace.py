"""Pace: bounds how much work of one kind begins in one iteration of the event loop.

When a node dies, thousands of clients come to another one at once. What all of them need would take this node a second
if it were done in one iteration, and no other client would receive a message meanwhile.

Rules:
- In each iteration a portion begins at once, and costs nothing more. The rest waits in a line, in order.
- An idle node starts the next iteration immediately, so a line costs no throughput.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["PORTION", "Pace"]

PORTION: Final = 8  # of work that takes about 100 us


class Pace:
    """The line of one kind of work. portion: how many may begin in one iteration.

    tick: called before each piece of work that has waited; may do what other callbacks of the loop do.
    """

    def __init__(self, portion: int = PORTION) -> None:
        self._portion = portion
        self._left = portion
        self._line: deque[Callable[[], object]] = deque()
        self._is_armed = False
        self.tick: Callable[[], object] = lambda: None

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._line)

    @property
    def has_room(self) -> bool:
        """True if work may begin in this iteration."""
        return self._left > 0 and not self._line

    def take(self) -> bool:
        """Begin at once, if there is room. False: it must wait."""
        if not self._is_armed:
            self._is_armed = True
            asyncio.get_running_loop().call_soon(self._renew)
        if not self.has_room:
            return False
        self._left -= 1
        return True

    def run(self, work: Callable[[], object]) -> None:
        """Call `work` at once or in a later iteration. It must not raise."""
        if self.take():
            work()
        else:
            self._line.append(work)

    async def turn(self) -> None:
        """Return at once or in a later iteration."""
        if self.take():
            return
        come: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(lambda: _come(come))
        await come
        self.tick()  # nothing of the caller has run since it waited

    def _renew(self) -> None:
        self._left = self._portion
        self._is_armed = bool(self._line)
        if self._line:
            asyncio.get_running_loop().call_soon(self._renew)
        while self._line and self._left:
            self._left -= 1
            self.tick()
            self._line.popleft()()


def _come(come: "asyncio.Future[None]") -> None:
    if not come.done():  # its task may have been cancelled
        come.set_result(None)
