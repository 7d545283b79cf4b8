"""Feed: the deltas of one model as a node hears them, and what of them who joins has not read from history.

Rules:
- The node hands over what is published, once and in order, and says where something is missing that history has not:
  then all is said to be lost, and who subscribes must look at the database anew.
- Who joins reads history from its own position on. While somebody joins, what is passed on is kept for a while, so that
  what came while history was read need not be read from there, again and again.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from gateway import History, Position, Publication, Topics

__all__ = ["Feed"]

RECENT_MAX: Final = 1000  # publications kept for who joins; reading history takes less time than so many


class Feed:
    """Follows one model. deliver: takes each publication, once and in order. lose: is told that continuity is lost."""

    def __init__(
        self,
        topics: Topics,
        model: str,
        *,
        history: History,
        deliver: Callable[[Publication], None],
        lose: Callable[[], None],
    ) -> None:
        self._last: Position | None = None  # None until something was heard
        self._topics = topics
        self._model = model
        self._history = history
        self._deliver = deliver
        self._lose = lose
        self._opening = asyncio.Lock()
        self._is_open = False
        self._joining = 0
        self._recent: deque[Publication] = deque(maxlen=RECENT_MAX)
        self._known: Position | None = None  # in a history that who joins saw before the node did

    async def open(self) -> None:
        """Begin to hear, if it does not; on return, whatever is published from now on is heard."""
        async with self._opening:
            if not self._is_open:
                await self._topics.listen(self._model, self._hear, history=self._history, on_gap=self._begin_anew)
                self._is_open = True

    def close(self) -> None:
        """Hear no more."""
        if self._is_open:
            self._is_open = False
            self._topics.unlisten(self._model)

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Keep what is passed on, for `newer`."""
        self._joining += 1
        try:
            yield
        finally:
            self._joining -= 1
            if not self._joining:
                self._recent.clear()

    async def read(self, since: Position) -> list[Publication] | None:
        """Read from history what is behind a position; None = it is gone."""
        return await self._topics.history(self._model, since)

    def newer(self, since: Position) -> list[Publication] | None:
        """Tell what was passed on behind a position just read; None = not known: read again. Never waits."""
        last = self._last
        if last is not None and last.epoch != since.epoch:  # Redis lost its state, and the node has not noticed yet
            self._begin_anew(since)
            self._known = since
        if last is None or last.epoch != since.epoch or last.offset <= since.offset:
            return []
        recent = [each for each in self._recent if each.position is not None and each.position.offset > since.offset]
        is_whole = len(recent) == last.offset - since.offset and recent[0].previous_tag == since.tag
        return recent if is_whole else None

    def _hear(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            if publication.position is None:
                continue  # published past the history: it is nobody's delta
            self._last = publication.position
            if self._joining:
                self._recent.append(publication)
            self._deliver(publication)

    def _begin_anew(self, position: Position) -> None:
        """Know that what comes does not follow what came: say so, and go on from there."""
        known, self._known = self._known, None
        self._last = position
        self._recent.clear()
        if known is None or position.epoch != known.epoch or position.offset > known.offset:
            self._lose()
