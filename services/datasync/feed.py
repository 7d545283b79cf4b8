"""Feed: the deltas of one model as a node hears them, each once and in order.

Rules:
- What is heard has an offset; it is passed on iff it follows the last one. What was heard is dropped, a hole is filled
  from history. Another epoch or tag where none should be, or a hole that history no longer has, and all is said to be
  lost: who subscribes must look at the database anew.
- Who joins reads history from its own position on. While somebody joins, what is passed on is kept for a while, so that
  what came while history was read need not be read from there, again and again.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from gateway import BrokerUnavailable, Position, Publication, Topics

__all__ = ["Feed"]

RECENT_MAX: Final = 1000  # publications kept for who joins; reading history takes less time than so many
TAGS_MAX: Final = 2000  # by which an offset heard again is told from one that was given twice
PENDING_MAX: Final = 10_000  # publications heard while a hole is filled; of more the first are read from history again
RETRY_S: Final = 0.5


class Feed:
    """Follows one model. deliver: takes each publication, once and in order. lose: is told that continuity is lost."""

    def __init__(
        self, topics: Topics, model: str, *, deliver: Callable[[Publication], None], lose: Callable[[], None]
    ) -> None:
        self.users = 0
        self.last: Position | None = None  # None until something is known
        self._topics = topics
        self._model = model
        self._deliver = deliver
        self._lose = lose
        self._opening = asyncio.Lock()
        self._is_open = False
        self._joining = 0
        self._recent: deque[Publication] = deque(maxlen=RECENT_MAX)
        self._tags: dict[int, str] = {}
        self._pending: deque[Publication] = deque(maxlen=PENDING_MAX)
        self._filling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to hear, if it does not; on return, whatever is published from now on is heard."""
        async with self._opening:
            if not self._is_open:
                await self._topics.listen(self._model, self._hear)
                self._is_open = True

    def close(self) -> None:
        """Hear no more."""
        if self._is_open:
            self._is_open = False
            self._topics.unlisten(self._model)
        if self._filling is not None:
            self._filling.cancel()

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
        found = await self._topics.history(self._model, since)
        for publication in found or ():
            self._note(publication)
        return found

    def newer(self, since: Position) -> list[Publication] | None:
        """Tell what was passed on behind a position just read; None = not known: read again. Never waits."""
        if self.last is None:
            self.last = since
        elif self.last.epoch != since.epoch:
            self._start_anew_at(since)  # Redis lost its state, and nothing was heard since
        if self.last.offset <= since.offset:
            return []
        recent = [each for each in self._recent if each.position is not None and each.position.offset > since.offset]
        is_whole = len(recent) == self.last.offset - since.offset and recent[0].previous_tag == since.tag
        return recent if is_whole else None

    # -- what is heard -----------------------------------------------------------------------------------------------

    def _hear(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            if publication.position is None:
                continue  # published past the history: it is nobody's delta
            if self._filling is not None:
                self._pending.append(publication)
            else:
                self._take(publication, publication.position)

    def _take(self, publication: Publication, position: Position) -> None:
        last = self.last
        if last is None:
            self._pass_on(publication)
        elif position.epoch != last.epoch:
            self._start_anew_at(position)
        elif position.offset <= last.offset:
            if self._tags.get(position.offset, position.tag) != position.tag:
                self._start_anew_at(position)
        elif position.offset > last.offset + 1:
            self._pending.append(publication)
            self._filling = asyncio.get_running_loop().create_task(self._fill(last), name=f"filling {self._model}")
        elif publication.previous_tag != last.tag:
            self._start_anew_at(position)
        else:
            self._pass_on(publication)

    def _pass_on(self, publication: Publication) -> None:
        self.last = publication.position
        self._note(publication)
        if self._joining:
            self._recent.append(publication)
        self._deliver(publication)

    def _note(self, publication: Publication) -> None:
        if publication.position is not None:
            self._tags[publication.position.offset] = publication.position.tag
            while len(self._tags) > TAGS_MAX:
                del self._tags[next(iter(self._tags))]

    def _start_anew_at(self, position: Position | None) -> None:
        """Know that what comes does not follow what came: say so, and go on from there."""
        self.last = position
        self._tags.clear()
        self._recent.clear()
        self._lose()

    async def _fill(self, since: Position) -> None:
        """Fill a hole from history, then go on with what was heard meanwhile."""
        while True:
            try:
                missed = await self._topics.history(self._model, since)
                break
            except BrokerUnavailable:
                await asyncio.sleep(RETRY_S)
        self._filling = None
        pending, self._pending = self._pending, deque(maxlen=PENDING_MAX)
        if missed is None:
            self._start_anew_at(None)
        for publication in missed or ():
            self._pass_on(publication)
        self._hear(pending)
