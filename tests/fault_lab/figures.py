"""Figures of a run from its journals: delivery delays, and the time of recovery. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.fault_lab.journal import Acked, Journal, Received

__all__ = ["Delays", "delays", "healed_after_s", "percentile"]


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds from the start of a publish to its arrival, over all deliveries except replays."""

    count: int
    p50_s: float
    p99_s: float
    max_s: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value that `share` of the ordered values do not exceed; 0 if there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def delays(acked: Iterable[Acked], journals: Iterable[Journal]) -> Delays:
    """Measure the delays of live deliveries."""
    began = {(one.channel, one.number): one.started_s for one in acked}
    taken = sorted(
        entry.at_s - began[journal.channel, entry.number]
        for journal in journals
        for entry in journal.received()
        if not entry.is_replayed and (journal.channel, entry.number) in began
    )
    return Delays(len(taken), percentile(taken, 0.5), percentile(taken, 0.99), taken[-1] if taken else 0.0)


def healed_after_s(acked: Iterable[Acked], journals: Iterable[Journal], since_s: float) -> float:
    """Return the seconds from `since_s` until every client has, on each channel, a message published after it.

    Infinite if a client never has.
    """
    fresh = {(one.channel, one.number) for one in acked if one.started_s >= since_s}
    worst = 0.0
    for journal in journals:
        first = next((entry.at_s for entry in journal.entries if _is_fresh(entry, journal, fresh)), math.inf)
        worst = max(worst, first - since_s)
    return worst


def _is_fresh(entry: object, journal: Journal, fresh: set[tuple[str, int]]) -> bool:
    return isinstance(entry, Received) and (journal.channel, entry.number) in fresh
