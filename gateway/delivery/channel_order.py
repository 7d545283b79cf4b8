"""ChannelOrder: decides which publications of one channel to deliver or drop, and when to read history. Pure.

Rules:
- A publication is delivered iff it follows the last one: same epoch, offset + 1, and its previous tag is the last one's
  tag. A publication that was delivered already is dropped when it is received again.
- Anything else (a missing offset, another epoch, an offset used twice, another previous tag) means that history must
  decide. Then a *fill* is needed: history is read after the last delivered publication. Either it continues from there,
  or it no longer contains that publication: then subscribers receive a gap notice, and the channel continues at
  the end of history.
- So only history can lead to a gap, never a received publication: if a connection was moved from one server to another,
  publications of the first may arrive late.
- A hint is never delivered directly, because a publisher may claim any position. A hint with a new position triggers a
  fill, which finds the publication in history. A forged hint costs one read.
- While a fill is needed, nothing is delivered or buffered: a publication received before a read began is included in
  the read, or is in no history any more. Publications received during the read are buffered up to a limit; above it
  they are discarded, and read again.
- Until the first position is known, everything is delivered. A publication from before that position which arrives
  later is `Late`: for subscribers from before the position was known, not for those that start at it.

    live --hole, interruption, disagreement--> wanting --begin_fill--> filling --end_fill--> live, or wanting again
                                                  ^-------- abandon_fill -------'
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Final

from snorky.gateway.protocol.publication import Position, Publication

__all__ = ["ChannelOrder", "Gap", "Late", "Step"]

TAGS_MAX: Final = 256  # kept to distinguish an offset received twice from an offset used twice
WAITING_MAX: Final = 1000  # publications received during one read of history, which takes milliseconds
WAITING_MAX_BYTES: Final = 1 << 20
RECENT_MAX: Final = 300  # delivered publications kept for clients that are recovering: no client gets more
RECENT_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Gap:
    """Subscribers missed publications that are no longer available. position: delivery continues after it."""

    position: Position


@dataclass(frozen=True, slots=True)
class Late:
    """A publication only for clients that subscribed before the channel's position was known."""

    publication: Publication


Step = Publication | Gap | Late  # to deliver to subscribers, in order


class _Phase(Enum):
    LIVE = "live"
    WANTING = "wanting"
    FILLING = "filling"


class ChannelOrder:
    """One channel on one node. last: position of the last delivered publication; None until it is known."""

    __slots__ = (
        "_is_wanted_again",
        "_joining",
        "_late_until",
        "_phase",
        "_recent",
        "_recent_bytes",
        "_tags",
        "_waiting",
        "_waiting_bytes",
        "last",
    )

    def __init__(self) -> None:
        self.last: Position | None = None
        self._phase = _Phase.LIVE
        self._is_wanted_again = False
        self._tags: deque[str] = deque(maxlen=TAGS_MAX)  # of the latest offsets, ending with that of `last`
        self._waiting: list[Publication] = []
        self._waiting_bytes = 0
        self._late_until = 0  # an offset
        self._joining = 0
        self._recent: deque[Publication] | None = None  # set while a client is recovering
        self._recent_bytes = 0

    @property
    def wants_fill(self) -> bool:
        """True if history must be read: call `begin_fill`."""
        return self._phase is _Phase.WANTING

    @property
    def is_filling(self) -> bool:
        """True while history is being read."""
        return self._phase is _Phase.FILLING

    def start_at(self, position: Position) -> None:
        """Start at history's present position; no effect if a position is known already."""
        if self.last is None:
            self._begin_at(position)
            self._late_until = position.offset
            if self._is_wanted_again:  # a hint was received, perhaps with a later position
                self._is_wanted_again = False
                self.want_fill()

    def agrees(self, top: Position | None) -> bool:
        """Return True if this node has all that history has. top: history's position; None = there is no history."""
        last = self.last
        if last is None:
            return True  # nothing to compare yet
        if top is None or top.epoch != last.epoch or top.offset > last.offset:
            return False
        return self._tag_of(top.offset) == top.tag

    # -- received publications ---------------------------------------------------------------------------------------

    def receive(self, publications: Iterable[Publication]) -> list[Step]:
        """Process received publications; returns what to deliver now. The caller must then check `wants_fill`."""
        return [step for publication in publications if (step := self._receive(publication)) is not None]

    def _receive(self, publication: Publication) -> Step | None:
        position, last = publication.position or publication.hint, self.last
        if position is None:
            return publication  # it has no position: deliver it as received
        if self._phase is _Phase.FILLING:
            self._wait(publication)
        elif self._phase is _Phase.WANTING:
            pass  # the fill will read it
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
        """True if this publication is not known to be one received before: its offset may have been used twice."""
        tag = self._tag_of(position.offset)
        return position.offset > self._late_until if tag is None else tag != position.tag

    def _advance(self, publication: Publication) -> Publication:
        assert publication.position is not None  # noqa: S101 - for the type checker
        self.last = publication.position
        self._late_until = 0
        self._tags.append(self.last.tag)
        if self._recent is not None:
            self._recent.append(publication)
            self._recent_bytes += publication.size
            while len(self._recent) > RECENT_MAX or self._recent_bytes > RECENT_MAX_BYTES:
                self._recent_bytes -= self._recent.popleft().size
        return publication

    def _begin_at(self, position: Position) -> None:
        self.last = position
        self._late_until = 0
        self._tags.clear()
        self._tags.append(position.tag)
        if self._recent is not None:
            self._recent.clear()
            self._recent_bytes = 0

    def _tag_of(self, offset: int) -> str | None:
        """Return the tag at an offset up to the last one; None = too old, or before this node's first position."""
        assert self.last is not None  # noqa: S101 - as above
        back = self.last.offset - offset + 1
        return self._tags[-back] if 1 <= back <= len(self._tags) else None

    def _wait(self, publication: Publication) -> None:
        if self._is_wanted_again:
            return  # the next fill will read it
        self._waiting.append(publication)
        self._waiting_bytes += publication.size
        if len(self._waiting) > WAITING_MAX or self._waiting_bytes > WAITING_MAX_BYTES:
            self._forget_waiting()
            self._is_wanted_again = True

    def _forget_waiting(self) -> None:
        self._waiting = []
        self._waiting_bytes = 0

    # -- fills -------------------------------------------------------------------------------------------------------

    def want_fill(self) -> None:
        """Request a fill: publications may have been missed. A fill in progress may be too early: another follows."""
        if self._phase is _Phase.FILLING:
            self._is_wanted_again = True
        elif self.last is not None:
            self._phase = _Phase.WANTING

    def begin_fill(self) -> Position:
        """Begin the fill; returns the position after which the caller must read history, now."""
        assert self.last is not None and self._phase is _Phase.WANTING  # noqa: S101 - else the caller is wrong
        self._phase = _Phase.FILLING
        self._is_wanted_again = False
        self._forget_waiting()
        return self.last

    def abandon_fill(self) -> None:
        """End the fill without result, because history could not be read: it is still needed."""
        self._phase = _Phase.WANTING
        self._forget_waiting()

    def pass_on(self, missed: Iterable[Publication]) -> list[Step]:
        """Process the first part of what history has; the fill continues. Returns what to deliver now."""
        return [self._advance(publication) for publication in missed]

    def end_fill(self, missed: Iterable[Publication]) -> list[Step]:
        """End the fill with all publications after `begin_fill`'s position, or the rest; returns as `pass_on`."""
        return self._end(self.pass_on(missed))

    def end_fill_with_gap(self, top: Position, kept: Iterable[Publication] = ()) -> list[Step]:
        """End the fill of a history that does not continue from the last publication; returns what to deliver now.

        top: history's position. kept: its latest publications, in order; the new ones are delivered after the gap.
        """
        start, fresh = self._fresh(top, list(kept))
        self._begin_at(start)
        return self._end([Gap(start), *map(self._advance, fresh)])

    def _fresh(self, top: Position, kept: list[Publication]) -> tuple[Position, list[Publication]]:
        """Go back from history's end to a delivered or missing publication; returns its position and the new ones."""
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
        """True if it was, or may have been, delivered. position: of the same epoch as `last`."""
        assert self.last is not None  # noqa: S101 - as above
        return position.offset <= self.last.offset and self._tag_of(position.offset) in (position.tag, None)

    def _end(self, steps: Iterable[Step]) -> list[Step]:
        self._phase = _Phase.WANTING if self._is_wanted_again else _Phase.LIVE
        waiting = self._waiting
        self._forget_waiting()
        return [*steps, *self.receive(waiting)]

    # -- recovering clients ------------------------------------------------------------------------------------------

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Keep delivered publications during the context, for `join`. Enter it before reading history."""
        self._joining += 1
        if self._recent is None:
            self._recent, self._recent_bytes = deque(), 0
        try:
            yield
        finally:
            self._joining -= 1
            if not self._joining:
                self._recent = None

    def join(self, since: Position, missed: list[Publication]) -> list[Publication] | None:
        """Return the publications from a position to the last one delivered; live delivery continues after them.

        missed: the publications after `since`, read from history during `joining`. None = it does not connect to what
        was delivered: fill, and read again.
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
        count = last.offset - since.offset  # the publications after that will be delivered live
        if count < 0:
            return None  # the node's last delivered publication is older than the client's
        position = missed[count - 1].position if count else since
        return missed[:count] if position == last else None
