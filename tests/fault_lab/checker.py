"""The checker: compares acknowledgements with what clients received. Finds lost, duplicated, reordered, holes. Pure.

Rules:
- On a channel with history a client must receive everything whose publishing began after its first subscription.
  Exception: a `gap` or `recovered: false` reports as possibly missing what had begun by then and is not after the
  position in the notice. Any later notice also covers what Redis itself lost (`vanished`: a lagging replica was
  promoted).
- On a channel without history a client must receive what was published entirely while it was subscribed. Anything
  missing counts as lost; the caller decides how much loss is acceptable.
- A publish that ended with an error may arrive once or not at all. If the error was that it is not stored, connected
  clients have it, and clients that were away must be notified that something is missing. Otherwise it counts as
  `passed over`.
- A hole is a jump of offsets, or another epoch, without a notice. It is a fault even if no known message is in it.
- Raw connections are checked, without the deduplication of a client library: a message received twice is a duplicate.
"""

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from snorky.gateway.protocol.publication import Position
from tests.fault_lab.journal import Acked, Dropped, Gap, Journal, Received, Subscribed, Uncertain

__all__ = ["Verdict", "count_resyncs", "judge"]

_EXAMPLES_MAX = 20
_Known = Mapping[tuple[str, int], Position]


@dataclass(slots=True)
class Verdict:
    """Faults, counted over all clients. resyncs: reported gaps, which are no fault."""

    lost: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    holes: int = 0
    resyncs: int = 0
    disconnects: int = 0
    delivered: int = 0
    replayed: int = 0
    acked: int = 0
    uncertain: int = 0
    passed_over: int = 0  # published, not stored, and a client that was away got no notice
    told_late_s: float = 0.0  # longest time from `recovered: true` to the notice, for such a client
    excused: int = 0  # missing, but a notice covers it
    close_codes: Counter[int | None] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Nothing lost without a notice, nothing duplicated, nothing out of order."""
        return not (self.lost or self.duplicated or self.out_of_order or self.holes or self.passed_over)

    def note(self, kind: str, journal: Journal, text: str) -> None:
        """Keep one of the first faults as an example."""
        if len(self.examples) < _EXAMPLES_MAX:
            self.examples.append(f"{kind}: {journal.client} on {journal.channel}: {text}")


def judge(
    acked: Iterable[Acked],
    uncertain: Iterable[Uncertain],
    journals: Sequence[Journal],
    *,
    keeps_history: bool = True,
    allows_repeats: bool = False,
    vanished: Container[Position] = (),
) -> Verdict:
    """Check a run that has settled.

    allows_repeats: Redis lost its idempotency keys, so a retry may be stored twice. vanished: positions that were
    acknowledged and are no longer in any history.
    """
    by_channel: dict[str, list[Acked]] = defaultdict(list)
    verdict = Verdict()
    for one in acked:
        by_channel[one.channel].append(one)
        verdict.acked += 1
    unsure: set[tuple[str, int]] = set()
    unkept: dict[str, list[Uncertain]] = defaultdict(list)
    for each in uncertain:
        unsure.add((each.channel, each.number))
        if each.is_unkept:
            unkept[each.channel].append(each)
    verdict.uncertain = len(unsure)
    known = _positions(by_channel, journals)
    for journal in journals:
        _count(journal, verdict)
        _judge_sequence(journal, verdict)
        _judge_numbers(journal, unsure, verdict, allows_repeats=allows_repeats)
        owed = by_channel[journal.channel]
        if keeps_history:
            _judge_recoverable(journal, owed, known, vanished, verdict)
            _judge_unkept(journal, unkept[journal.channel], verdict)
        else:
            _judge_plain(journal, owed, verdict)
    return verdict


def _positions(
    by_channel: Mapping[str, Sequence[Acked]], journals: Sequence[Journal]
) -> dict[tuple[str, int], Position]:
    """Position of each message, from its acknowledgement or else from any receiver."""
    known = {
        (journal.channel, entry.number): entry.position
        for journal in journals
        for entry in journal.received()
        if entry.position is not None
    }
    for several in by_channel.values():
        known.update({(one.channel, one.number): one.position for one in several if one.position is not None})
    return known


def _notices(journal: Journal) -> list[Gap | Subscribed]:
    """Notices that something may be missing. The first subscription has no earlier messages to miss."""
    is_first = True
    found: list[Gap | Subscribed] = []
    for entry in journal.entries:
        if isinstance(entry, Gap) or (isinstance(entry, Subscribed) and not entry.is_recovered and not is_first):
            found.append(entry)
        is_first = is_first and not isinstance(entry, Subscribed)
    return found


def count_resyncs(journal: Journal) -> int:
    """Count the notices to this client that something of this channel may be missing."""
    return sum(not isinstance(entry, Subscribed) or entry.position is not None for entry in _notices(journal))


def _count(journal: Journal, verdict: Verdict) -> None:
    verdict.resyncs += count_resyncs(journal)
    for entry in journal.entries:
        match entry:
            case Received(is_replayed=is_replayed):
                verdict.delivered += 1
                verdict.replayed += is_replayed
            case Dropped(code=code):
                verdict.disconnects += 1
                verdict.close_codes[code] += 1


def _judge_sequence(journal: Journal, verdict: Verdict) -> None:
    """Check that offsets have no jump without a notice."""
    last: Position | None = None
    seen: set[Position] = set()
    for entry in journal.entries:
        match entry:
            case Subscribed(position=position, is_recovered=is_recovered):
                if last is None or not is_recovered:
                    last = position
            case Gap(position=position):
                last = position
            case Received(position=Position() as position, number=number):
                if position in seen:
                    verdict.duplicated += 1
                    verdict.note("duplicated", journal, f"{number} at {position}")
                    continue
                seen.add(position)
                if last is not None and position.epoch == last.epoch and position.offset <= last.offset:
                    verdict.out_of_order += 1
                    verdict.note("out of order", journal, f"{number} at {position} behind {last}")
                    continue
                if last is not None and (position.epoch, position.offset) != (last.epoch, last.offset + 1):
                    verdict.holes += 1
                    verdict.note("hole", journal, f"{number} at {position} behind {last}")
                last = position


def _judge_numbers(journal: Journal, unsure: set[tuple[str, int]], verdict: Verdict, *, allows_repeats: bool) -> None:
    """Check that numbers arrive in order, each once. Duplicates by position are counted by `_judge_sequence`."""
    seen: dict[int, Position | None] = {}
    highest = -1
    for entry in journal.received():
        number = entry.number
        if number in seen:
            if not allows_repeats and (entry.position is None or entry.position != seen[number]):
                verdict.duplicated += 1
                verdict.note("duplicated", journal, f"{number} at {entry.position}, before at {seen[number]}")
            continue
        seen[number] = entry.position
        if (journal.channel, number) in unsure:
            continue  # a publish that timed out may be stored after its successor was acknowledged
        if number < highest and not allows_repeats:
            verdict.out_of_order += 1
            verdict.note("out of order", journal, f"{number} behind {highest}")
        highest = max(highest, number)


def _judge_recoverable(
    journal: Journal, owed: Sequence[Acked], known: _Known, vanished: Container[Position], verdict: Verdict
) -> None:
    received = {entry.number for entry in journal.received()}
    since = next((entry for entry in journal.entries if isinstance(entry, Subscribed)), None)
    if since is None:
        return  # never subscribed, so nothing is required; other checks count subscribers
    notices = [(entry.at_s, entry.position) for entry in _notices(journal)]
    for one in owed:
        if one.started_s <= since.at_s or one.number in received:
            continue
        position = known.get((one.channel, one.number))
        if any(_covers(notice, one, None if position in vanished else position) for notice in notices):
            verdict.excused += 1
            continue
        verdict.lost += 1
        verdict.note("lost", journal, f"{one.number} at {position}, acknowledged {one.acked_s:.3f}")


def _judge_unkept(journal: Journal, unkept: Sequence[Uncertain], verdict: Verdict) -> None:
    received = {entry.number for entry in journal.received()}
    since = next((entry for entry in journal.entries if isinstance(entry, Subscribed)), None)
    if since is None:
        return
    notices_s = [entry.at_s for entry in _notices(journal)]
    recovered_s = [entry.at_s for entry in journal.entries if isinstance(entry, Subscribed) and entry.is_recovered]
    for one in unkept:
        if one.started_s <= since.at_s or one.number in received:
            continue
        told_s = next((at_s for at_s in notices_s if at_s > one.started_s), None)
        if told_s is None:
            verdict.passed_over += 1
            verdict.note("passed over", journal, f"{one.number}, sent {one.ended_s:.3f}")
            continue
        believed_s = next((at_s for at_s in recovered_s if at_s > one.ended_s), told_s)
        verdict.told_late_s = max(verdict.told_late_s, told_s - believed_s)


def _covers(notice: tuple[float, Position | None], one: Acked, position: Position | None) -> bool:
    """Return whether this notice covers this message."""
    at_s, top = notice
    if one.started_s >= at_s:
        return False  # published after the notice
    if position is None or top is None or position.epoch != top.epoch:
        return True
    return position.offset <= top.offset


def _judge_plain(journal: Journal, owed: Sequence[Acked], verdict: Verdict) -> None:
    received = {entry.number for entry in journal.received()}
    spans: list[tuple[float, float]] = []
    opened: float | None = None
    for entry in journal.entries:
        match entry:
            case Subscribed(at_s=at_s):
                opened = at_s
            case Dropped(at_s=at_s) if opened is not None:
                spans.append((opened, at_s))
                opened = None
    if opened is not None:
        spans.append((opened, float("inf")))
    for one in owed:
        if one.number not in received and any(begin < one.started_s and one.acked_s < end for begin, end in spans):
            verdict.lost += 1
            verdict.note("lost", journal, f"{one.number}, acknowledged {one.acked_s:.3f}")
