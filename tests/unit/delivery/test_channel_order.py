"""The sequence against a model: a history that is lost, trimmed, rolled back, and a wire that loses and repeats.

The model knows what was published and the content of history. Each subscriber keeps a journal; between two gaps it must
be one chain, and when all faults have ended it must reach the top of history.
"""

import itertools
from collections.abc import Sequence as Many
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snorky.gateway.delivery import channel_order as sequence
from snorky.gateway.delivery.channel_order import ChannelOrder, Gap, Late, Step
from snorky.gateway.protocol.publication import Position, Publication

SMALL = {"WAITING_MAX": 4, "TAGS_MAX": 6, "RECENT_MAX": 4}  # so that bounds are reached in few steps


class History:
    """The history that a server keeps of one channel, and its position."""

    tags = itertools.count(1)

    def __init__(self) -> None:
        self.top = Position(f"e{next(self.tags)}", 0, f"t{next(self.tags)}")
        self.entries: list[Publication] = []

    def publish(self) -> Publication:
        before = self.top
        self.top = Position(before.epoch, before.offset + 1, f"t{next(self.tags)}")
        publication = Publication(self.top.tag.encode(), self.top, before.tag)
        self.entries.append(publication)
        return publication

    def copy(self) -> "History":
        other = History()
        other.top, other.entries = self.top, list(self.entries)
        return other

    def trim(self, size: int) -> None:
        self.entries = self.entries[len(self.entries) - size :] if size else []

    def read(self, since: Position) -> list[Publication] | None:
        if since == self.top:
            return []
        if since.epoch != self.top.epoch or since.offset >= self.top.offset:
            return None
        found = [each for each in self.entries if each.position is not None and each.position.offset > since.offset]
        is_whole = len(found) == self.top.offset - since.offset and found[0].previous_tag == since.tag
        return found if is_whole else None


class Journal:
    """What one subscriber received: a chain from its start, or from the last gap."""

    def __init__(self, at: Position) -> None:
        self.at = at

    def note(self, steps: Many[Step]) -> None:
        for step in steps:
            if isinstance(step, Gap):
                self.at = step.position
            elif isinstance(step, Publication):
                assert step.position is not None
                expected = (self.at.epoch, self.at.offset + 1, self.at.tag)
                assert (step.position.epoch, step.position.offset, step.previous_tag) == expected, (
                    "a hole without a notice"
                )
                self.at = step.position


class SequenceMachine(RuleBasedStateMachine):
    """One node's sequence of a channel, its subscribers, the server, and publications in flight."""

    @initialize()
    def start(self) -> None:
        self.patches = [patch.object(sequence, name, size) for name, size in SMALL.items()]
        for each in self.patches:
            each.start()
        self.server = History()
        self.replica = self.server.copy()
        self.wire: list[Publication] = []
        self.past = [self.server.top]  # positions that clients may resume from
        self.node = ChannelOrder()
        self.node.start_at(self.server.top)
        self.journals = [Journal(self.server.top)]
        self.missed: list[Publication] | None = None  # result of the running fill
        self.gone: tuple[Position, list[Publication]] | None = None
        self.joiner: tuple[Position, list[Publication]] | None = None

    def teardown(self) -> None:
        if not hasattr(self, "patches"):
            return
        try:
            self.settle()
        finally:
            for each in self.patches:
                each.stop()

    def tell(self, steps: list[Step]) -> None:
        assert not any(isinstance(step, Late) for step in steps), "nothing was on the wire when it began"
        for journal in self.journals:
            journal.note(steps)

    # -- the server ------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3))
    def publish(self, count: int) -> None:
        for _ in range(count):
            self.wire.append(self.server.publish())
            self.past.append(self.server.top)

    @rule(size=st.integers(0, 4))
    def trim(self, size: int) -> None:
        self.server.trim(min(size, len(self.server.entries)))

    @rule()
    def lose_everything(self) -> None:
        self.server = History()

    @rule()
    def replicate(self) -> None:
        self.replica = self.server.copy()

    @rule()
    def fail_over(self) -> None:
        """Offsets are assigned again, with other tags."""
        self.server = self.replica.copy()

    # -- the wire --------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 6))
    def deliver(self, count: int) -> None:
        heard, self.wire = self.wire[:count], self.wire[count:]
        self.tell(self.node.receive(heard))

    @precondition(lambda self: self.wire)
    @rule(at=st.integers(0, 5))
    def lose_one(self, at: int) -> None:
        self.wire.pop(at % len(self.wire))

    @precondition(lambda self: self.wire)
    @rule(at=st.integers(0, 5), to=st.integers(0, 5))
    def repeat_or_delay(self, at: int, to: int) -> None:
        self.wire.insert(to % (len(self.wire) + 1), self.wire[at % len(self.wire)])

    @precondition(lambda self: len(self.wire) > 1)
    @rule(at=st.integers(0, 5))
    def swap(self, at: int) -> None:
        at %= len(self.wire) - 1
        self.wire[at], self.wire[at + 1] = self.wire[at + 1], self.wire[at]

    @rule()
    def interrupt(self) -> None:
        self.wire.clear()
        self.node.want_fill()

    @rule()
    def publish_bare(self) -> None:
        """It arrives at once, whatever else is in progress."""
        bare = Publication(b"bare")
        assert self.node.receive([bare]) == [bare]

    # -- the node --------------------------------------------------------------------------------------------------

    @rule()
    def compare(self) -> None:
        if not self.node.agrees(self.server.top):
            self.node.want_fill()

    @precondition(lambda self: self.node.wants_fill)
    @rule()
    def begin_fill(self) -> None:
        since = self.node.begin_fill()
        self.missed = self.server.read(since)
        self.gone = None

    @precondition(lambda self: self.node.is_filling and self.missed is None)
    @rule()
    def ask_where_history_stands(self) -> None:
        self.gone = self.server.top, list(self.server.entries[-3:])

    @precondition(lambda self: self.node.is_filling)
    @rule()
    def abandon_fill(self) -> None:
        self.node.abandon_fill()

    @precondition(lambda self: self.node.is_filling and (self.missed is not None or self.gone is not None))
    @rule()
    def end_fill(self) -> None:
        if self.missed is not None:
            self.tell(self.node.end_fill(self.missed))
        elif self.gone is not None:
            self.tell(self.node.end_fill_with_gap(*self.gone))

    # -- late subscribers ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.joiner is None)
    @rule(back=st.integers(0, 8))
    def begin_to_join(self, back: int) -> None:
        since = self.past[-1 - back % len(self.past)]
        self.joining = self.node.joining()
        self.joining.__enter__()
        missed = self.server.read(since)
        if missed is None:
            self.joining.__exit__(None, None, None)
        else:
            self.joiner = since, missed

    @precondition(lambda self: self.joiner is not None)
    @rule()
    def join(self) -> None:
        assert self.joiner is not None
        since, missed = self.joiner
        joined = self.node.join(since, missed)
        self.joiner = None
        self.joining.__exit__(None, None, None)
        if joined is not None:
            journal = Journal(since)
            journal.note(joined)
            assert journal.at == self.node.last, "it would continue with another history"
            self.journals.append(journal)

    # -- invariants ------------------------------------------------------------------------------------------------

    @invariant()
    def all_stand_where_the_node_stands(self) -> None:
        for journal in getattr(self, "journals", ()):
            assert journal.at == self.node.last

    def settle(self) -> None:
        """Without faults everything is complete after a comparison and few fills."""
        if self.node.is_filling:
            self.node.abandon_fill()
        self.repair()
        # Ahead of a server that was rolled back, it notices at the next publication, whose offset it already has.
        last, top = self.node.last, self.server.top
        is_ahead = last is not None and last.epoch == top.epoch and last.offset > top.offset
        assert last == top or is_ahead, "a message is missing, and no gap was reported"
        self.publish(2)
        self.repair()
        assert self.node.last == self.server.top, "it does not continue"

    def repair(self) -> None:
        self.deliver(len(self.wire))
        for _ in range(3):
            self.compare()
            while self.node.wants_fill:
                self.begin_fill()
                if self.missed is None:
                    self.ask_where_history_stands()
                self.end_fill()


SequenceMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)


TestSequenceAgainstModel = SequenceMachine.TestCase
