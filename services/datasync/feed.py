"""Feed: the deltas of one model that a node receives, and those that a new subscription has not yet read from history.

Rules:
- The node delivers each publication once and in order, and reports a gap that history cannot fill. The feed then
  reports lost continuity, and subscribers must read the database again.
- A new subscription reads history from its own position on. While one does so, the feed buffers the publications that
  it delivers: those that arrive during the read then need not be read from history in yet another round.
- The replay is not that of `Topics.recover`: that one returns at most 300 publications at once, and none if one without
  a position came in between. Here up to the whole history is sent, as fast as the client reads.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from snorky.gateway import History, Position, Publication, Topics

__all__ = ["Feed"]

RECENT_MAX: Final = 1000  # publications buffered for new subscriptions; fewer arrive while history is read


class Feed:
    """Follows one model. deliver: called with each publication, once and in order. lose: called on lost continuity."""

    def __init__(
        self,
        topics: Topics,
        model: str,
        *,
        history: History,
        deliver: Callable[[Publication], None],
        lose: Callable[[], None],
    ) -> None:
        self._last: Position | None = None  # None until a publication arrives
        self._topics = topics
        self._model = model
        self._history = history
        self._deliver = deliver
        self._lose = lose
        self._opening = asyncio.Lock()
        self._is_open = False
        self._joining = 0
        self._recent: deque[Publication] = deque(maxlen=RECENT_MAX)
        self._known: Position | None = None  # in a new epoch that a new subscription saw before the node did

    async def open(self) -> None:
        """Listen to the model's topic. On return, every later publication will be delivered. Idempotent."""
        async with self._opening:
            if not self._is_open:
                await self._topics.listen(self._model, self._receive, history=self._history, on_gap=self._begin_anew)
                self._is_open = True

    def close(self) -> None:
        """Stop listening. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._topics.unlisten(self._model)

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Buffer delivered publications within the block, for `newer`."""
        self._joining += 1
        try:
            yield
        finally:
            self._joining -= 1
            if not self._joining:
                self._recent.clear()

    async def read(self, since: Position) -> list[Publication] | None:
        """Read the publications after a position from history; None = history no longer has all of them."""
        return await self._topics.history(self._model, since)

    def newer(self, since: Position) -> list[Publication] | None:
        """Return the publications delivered after a position just read. Never waits.

        None = the buffer does not have all of them: read history again.
        """
        last = self._last
        if last is not None and last.epoch != since.epoch:  # Redis lost its state, and the node has not noticed yet
            self._begin_anew(since)
            self._known = since
        if last is None or last.epoch != since.epoch or last.offset <= since.offset:
            return []
        recent = [each for each in self._recent if each.position is not None and each.position.offset > since.offset]
        is_whole = len(recent) == last.offset - since.offset and recent[0].previous_tag == since.tag
        return recent if is_whole else None

    def _receive(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            if publication.position is None:
                continue  # published without history, so it is not a delta
            self._last = publication.position
            if self._joining:
                self._recent.append(publication)
            self._deliver(publication)

    def _begin_anew(self, position: Position) -> None:
        """Continue from a position that does not follow the last publication, and report lost continuity."""
        known, self._known = self._known, None
        self._last = position
        self._recent.clear()
        if known is None or position.epoch != known.epoch or position.offset > known.offset:
            self._lose()
