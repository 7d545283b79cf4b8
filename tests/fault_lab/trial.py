"""Trial: one row of the table while it runs, and its outcome."""

import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.fault_lab.checker import Verdict
from tests.fault_lab.figures import Delays
from tests.fault_lab.lab import Lab

__all__ = ["Fault", "Outcome", "Trial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A row: the fault and its promises."""

    key: str  # for the command line
    name: str
    users_see: str
    inject: Callable[["Trial"], Awaitable[None]]
    healed_within_s: float = math.inf
    disconnects: bool = False  # may clients lose their connection?
    resyncs_max: int = 0  # resyncs allowed for one subscription, each time the fault happens (`Trial.times`)
    allows_repeats: bool = False  # Redis loses idempotency keys
    may_vanish: bool = False  # Redis may lose acknowledged messages
    topology: str = "single"
    needs_history: bool = False
    needs: tuple[str, ...] = ()  # programs needed besides Redis
    is_random: bool = True  # drawn by `chaos`
    is_in_ci: bool = True  # otherwise only in `make faults`: it takes long, and CI runs a similar row


@dataclass(slots=True)
class Outcome:
    """The outcome of a row. broken: the promises that were not kept."""

    fault: Fault
    verdict: Verdict = field(default_factory=Verdict)
    healed_s: float = 0.0
    delays: Delays = field(default_factory=lambda: Delays(0, 0.0, 0.0, 0.0))
    took_s: float = 0.0
    figures: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Trial:
    """The parts that a fault's function works with."""

    def __init__(self, lab: Lab, outcome: Outcome) -> None:
        self.lab = lab
        self.outcome = outcome
        self.ended_s = time.monotonic()
        self.expected_lefts: Counter[str] = Counter()
        self.times = 0  # counted by faults that happen several times

    def ended(self) -> None:
        """Mark the end of the fault: healing is measured from here."""
        self.ended_s = time.monotonic()

    def figure(self, text: str) -> None:
        """Record a measurement."""
        self.outcome.figures.append(text)

    def expect(self, is_kept: bool, promise: str) -> None:
        """Check a promise of the row; a broken one is listed with the row."""
        if not is_kept:
            self.outcome.broken.append(promise)

    def expect_within(self, taken_s: float, most_s: float, what: str) -> None:
        """Record how long something took, and check its deadline."""
        self.figure(f"{what} {taken_s:.1f} s")
        self.expect(taken_s <= most_s, f"{what} took {taken_s:.1f} s, promised {most_s:g} s")
