"""Sequence: what one channel's publications do when a node hears them: deliver, drop, or read history. Pure, no await.

Rules:
- A publication is delivered iff it follows the last one: same epoch, offset + 1, and it names the last one's tag as its
  predecessor's. What was delivered is dropped when it comes again.
- All else (a hole, another epoch, an offset that was given twice, a predecessor that is not ours) says that history
  knows better. Then a *fill* is wanted: history is read from the last one on. It has what follows, or the last one is
  not in it any more: then there is a gap, which is told, and the channel goes on from where history stands.
- So a gap comes from history alone, never from what was heard: of two servers that a connection saw one after
  another, what came from the former may be heard late.
- A hint is never delivered in its place, for a publisher may say any position: one that tells something new wants a
  fill, and history has the publication. A forged hint costs a read.
- While a fill is wanted nothing is delivered, and nothing is kept: what was heard before a read began is in what it
  reads, or in no history any more. What is heard while the read is under way waits, bounded; beyond the bound it is
  forgotten, and read again.
- Until a first position is known everything is delivered: nobody has been promised anything. What had been published
  before that position and comes late is `Late`: for those who were here already, not for who begins at the position.

    live --hole, interruption, disagreement--> wanting --begin_fill--> filling --end_fill--> live, or wanting again
                                                  ^-------- abandon_fill -------'
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gateway.publication import Position, Publication

__all__ = ["Gap", "Late", "Sequence", "Step"]

TAGS_MAX: Final = 256  # by which an offset heard again is told from one that was given twice
WAITING_MAX: Final = 1000  # publications heard during one read of history, which takes milliseconds
WAITING_MAX_BYTES: Final = 1 << 20
RECENT_MAX: Final = 1000  # the same, kept for who joins


@dataclass(frozen=True, slots=True)
class Gap:
    """Something was published that this node's subscribers did not get and cannot get. position: where it goes on."""

    position: Position


@dataclass(frozen=True, slots=True)
class Late:
    """A publication for those only who subscribed before the channel's position was known."""

    publication: Publication


Step = Publication | Gap | Late  # what is to be told to subscribers, in order


class _Phase(Enum):
    LIVE = "live"
    WANTING = "wanting"
    FILLING = "filling"


class Sequence:
    """One channel on one node. last: the last publication that was delivered; None until something is known."""

    __slots__ = (
        "_is_wanted_again",
        "_joining",
        "_late_until",
        "_phase",
        "_recent",
        "_tags",
        "_waiting",
        "_waiting_bytes",
        "last",
    )

    def __init__(self) -> None:
        self.last: Position | None = None
        self._phase = _Phase.LIVE
        self._is_wanted_again = False
        self._tags: deque[str] = deque(maxlen=TAGS_MAX)  # of the last offsets, up to the last one's
        self._waiting: list[Publication] = []
        self._waiting_bytes = 0
        self._late_until = 0  # an offset
        self._joining = 0
        self._recent: deque[Publication] | None = None  # there while somebody joins

    @property
    def wants_fill(self) -> bool:
        """True if history is to be read: call `begin_fill`."""
        return self._phase is _Phase.WANTING

    @property
    def is_filling(self) -> bool:
        """True while history is read."""
        return self._phase is _Phase.FILLING

    def start_at(self, position: Position) -> None:
        """Begin where history stands; nothing if something is known already."""
        if self.last is None:
            self._begin_at(position)
            self._late_until = position.offset
            if self._is_wanted_again:  # a hint was heard, perhaps of what came behind that position
                self._is_wanted_again = False
                self.want_fill()

    def agrees(self, top: Position | None) -> bool:
        """Tell if this node has all that history has. top: where it stands; None = there is none."""
        last = self.last
        if last is None:
            return True  # nothing is promised
        if top is None or top.epoch != last.epoch or top.offset > last.offset:
            return False
        return self._tag_of(top.offset) == top.tag

    # -- what is heard -----------------------------------------------------------------------------------------------

    def hear(self, publications: Iterable[Publication]) -> list[Step]:
        """Take what was heard; returns what is to be delivered now. Then look at `wants_fill`."""
        return [step for publication in publications if (step := self._hear(publication)) is not None]

    def _hear(self, publication: Publication) -> Step | None:
        position, last = publication.position or publication.hint, self.last
        if position is None:
            return publication  # it has no place among the others: as it comes
        if self._phase is _Phase.FILLING:
            self._wait(publication)
        elif self._phase is _Phase.WANTING:
            pass  # it will be read
        elif last is None and publication.position is None:
            self._is_wanted_again = True
        elif last is None:
            return self._advance(publication)
        elif position.epoch != last.epoch or position.offset > last.offset + 1:
            self.want_fill()
        elif position.offset == last.offset + 1:
            if publication.previous_tag == last.tag and publication.position is not None:
                return self._advance(publication)
            self.want_fill()
        elif self._is_strange(position):
            self.want_fill()
        elif position.offset <= self._late_until:
            return Late(publication)
        return None

    def _is_strange(self, position: Position) -> bool:
        """True if an offset up to the last one is not known to be heard again: perhaps it was given twice."""
        tag = self._tag_of(position.offset)
        return position.offset > self._late_until if tag is None else tag != position.tag

    def _advance(self, publication: Publication) -> Publication:
        assert publication.position is not None  # noqa: S101 - a fact for the type checker
        self.last = publication.position
        self._late_until = 0
        self._tags.append(self.last.tag)
        if self._recent is not None:
            self._recent.append(publication)
        return publication

    def _begin_at(self, position: Position) -> None:
        self.last = position
        self._late_until = 0
        self._tags.clear()
        self._tags.append(position.tag)
        if self._recent is not None:
            self._recent.clear()

    def _tag_of(self, offset: int) -> str | None:
        """Tell the tag of an entry up to the last one; None = too long ago, or before this node came."""
        assert self.last is not None  # noqa: S101 - as above
        back = self.last.offset - offset + 1
        return self._tags[-back] if 1 <= back <= len(self._tags) else None

    def _wait(self, publication: Publication) -> None:
        if self._is_wanted_again:
            return  # it will be read
        self._waiting.append(publication)
        self._waiting_bytes += len(publication.payload)
        if len(self._waiting) > WAITING_MAX or self._waiting_bytes > WAITING_MAX_BYTES:
            self._forget_waiting()
            self._is_wanted_again = True

    def _forget_waiting(self) -> None:
        self._waiting = []
        self._waiting_bytes = 0

    # -- fills -------------------------------------------------------------------------------------------------------

    def want_fill(self) -> None:
        """Know that something may have been missed; also while a fill is under way, which may have come too early."""
        if self._phase is _Phase.FILLING:
            self._is_wanted_again = True
        elif self.last is not None:
            self._phase = _Phase.WANTING

    def begin_fill(self) -> Position:
        """Go into the fill that is wanted; returns the position from which history is to be read, now."""
        assert self.last is not None and self._phase is _Phase.WANTING  # noqa: S101 - or the caller is wrong
        self._phase = _Phase.FILLING
        self._is_wanted_again = False
        self._forget_waiting()
        return self.last

    def abandon_fill(self) -> None:
        """Know that history could not be read: it is wanted still."""
        self._phase = _Phase.WANTING
        self._forget_waiting()

    def pass_on(self, missed: Iterable[Publication]) -> list[Step]:
        """Take the first of what history has; the fill goes on. Returns what is to be delivered now."""
        return [self._advance(publication) for publication in missed]

    def end_fill(self, missed: Iterable[Publication]) -> list[Step]:
        """Take what history has behind the position of `begin_fill`, or the rest of it. Returns as `pass_on`."""
        return self._end(self.pass_on(missed))

    def end_fill_with_gap(self, top: Position, kept: Iterable[Publication] = ()) -> list[Step]:
        """Know that history does not follow the last one, and where it stands; returns what is to be told now.

        kept: the last of what it has, in order. What of that is new to us is delivered behind the gap.
        """
        start, fresh = self._fresh(top, list(kept))
        self._begin_at(start)
        return self._end([Gap(start), *map(self._advance, fresh)])

    def _fresh(self, top: Position, kept: list[Publication]) -> tuple[Position, list[Publication]]:
        """Go back from where history stands to what was delivered already, or is not kept; returns that position."""
        fresh: list[Publication] = []
        while kept and kept[-1].position == top and kept[-1].previous_tag is not None:
            is_same_epoch = self.last is not None and self.last.epoch == top.epoch
            if is_same_epoch and self._is_delivered(top):
                break
            publication = kept.pop()
            fresh.append(publication)
            top = Position(top.epoch, top.offset - 1, publication.previous_tag or "")
        return top, fresh[::-1]

    def _is_delivered(self, position: Position) -> bool:
        """True if it is, or may be, one of those delivered. position: of our epoch."""
        assert self.last is not None  # noqa: S101 - as above
        return position.offset <= self.last.offset and self._tag_of(position.offset) in (position.tag, None)

    def _end(self, steps: Iterable[Step]) -> list[Step]:
        self._phase = _Phase.WANTING if self._is_wanted_again else _Phase.LIVE
        waiting = self._waiting
        self._forget_waiting()
        return [*steps, *self.hear(waiting)]

    # -- who joins ---------------------------------------------------------------------------------------------------

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Keep what is delivered, for `join`. Enter it before history is read."""
        self._joining += 1
        if self._recent is None:
            self._recent = deque(maxlen=RECENT_MAX)
        try:
            yield
        finally:
            self._joining -= 1
            if not self._joining:
                self._recent = None

    def join(self, since: Position, missed: list[Publication]) -> list[Publication] | None:
        """Say what brings somebody from a position to the last one delivered: it goes on with what is delivered next.

        missed: what history has behind `since`, read while joining. None = the two do not meet: fill, read again.
        """
        last = self.last
        end = (missed[-1].position or since) if missed else since
        if last is None or last.epoch != end.epoch:
            return None
        if last.offset > end.offset:  # delivered while history was read
            recent = [
                each for each in self._recent or () if each.position is not None and each.position.offset > end.offset
            ]
            is_whole = len(recent) == last.offset - end.offset and recent[0].previous_tag == end.tag
            return [*missed, *recent] if is_whole else None
        count = last.offset - since.offset  # what is behind that is still to be delivered
        if count < 0:
            return None  # whom we join is behind who joins
        position = missed[count - 1].position if count else since
        return missed[:count] if position == last else None
