"""Figures of a run from its journals: how long messages took, and when all was well again. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.faults.lab.journal import Acked, Journal, Received

__all__ = ["Delays", "delays", "healed_after_s", "percentile"]


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds from the beginning of a publish to its arrival, over all deliveries that were not replays."""

    count: int
    p50_s: float
    p99_s: float
    max_s: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """Give the value that `share` of the ordered values do not exceed; 0 of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def delays(acked: Iterable[Acked], journals: Iterable[Journal]) -> Delays:
    """Measure how long live deliveries took."""
    began = {(one.channel, one.number): one.started_s for one in acked}
    taken = sorted(
        entry.at_s - began[journal.channel, entry.number]
        for journal in journals
        for entry in journal.received()
        if not entry.is_replayed and (journal.channel, entry.number) in began
    )
    return Delays(len(taken), percentile(taken, 0.5), percentile(taken, 0.99), taken[-1] if taken else 0.0)


def healed_after_s(acked: Iterable[Acked], journals: Iterable[Journal], since_s: float) -> float:
    """Tell how many seconds after `since_s` the last client got, on its last channel, something published after it.

    Infinite if one never did.
    """
    fresh = {(one.channel, one.number) for one in acked if one.started_s >= since_s}
    worst = 0.0
    for journal in journals:
        first = next((entry.at_s for entry in journal.entries if _is_fresh(entry, journal, fresh)), math.inf)
        worst = max(worst, first - since_s)
    return worst


def _is_fresh(entry: object, journal: Journal, fresh: set[tuple[str, int]]) -> bool:
    return isinstance(entry, Received) and (journal.channel, entry.number) in fresh
