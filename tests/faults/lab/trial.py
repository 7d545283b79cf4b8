"""Trial: one row of the table while it runs, and what came of it."""

import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.faults.lab.checker import Verdict
from tests.faults.lab.figures import Delays
from tests.faults.lab.lab import Lab

__all__ = ["Fault", "Outcome", "Trial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A row: what is brought about, and what was promised for it."""

    key: str  # for the command line
    name: str
    users_see: str
    inject: Callable[["Trial"], Awaitable[None]]
    healed_within_s: float = math.inf
    disconnects: bool = False  # may clients lose their connection?
    resyncs_max: int = 0  # of one subscription: how often may it be told that something is missing?
    allows_repeats: bool = False  # Redis loses idempotency keys
    may_vanish: bool = False  # Redis may lose what it has acknowledged
    topology: str = "single"
    needs_history: bool = False
    needs: tuple[str, ...] = ()  # programs beside Redis
    is_random: bool = True  # drawn by `chaos`
    is_in_ci: bool = True  # else only by `make faults`: it takes long and has a sibling that CI runs


@dataclass(slots=True)
class Outcome:
    """A row as it came out. broken: the promises that were."""

    fault: Fault
    verdict: Verdict = field(default_factory=Verdict)
    healed_s: float = 0.0
    delays: Delays = field(default_factory=lambda: Delays(0, 0.0, 0.0, 0.0))
    took_s: float = 0.0
    figures: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Trial:
    """What a fault's function has in its hands."""

    def __init__(self, lab: Lab, outcome: Outcome) -> None:
        self.lab = lab
        self.outcome = outcome
        self.ended_s = time.monotonic()
        self.expected_lefts: Counter[str] = Counter()

    def ended(self) -> None:
        """Say that the fault is over from now on: healing is measured from here."""
        self.ended_s = time.monotonic()

    def figure(self, text: str) -> None:
        """Tell something that was measured."""
        self.outcome.figures.append(text)

    def expect(self, is_kept: bool, promise: str) -> None:
        """Hold a promise of the row; one that is broken is told with the row."""
        if not is_kept:
            self.outcome.broken.append(promise)

    def expect_within(self, taken_s: float, most_s: float, what: str) -> None:
        """Tell how long something took, and hold it to its deadline."""
        self.figure(f"{what} {taken_s:.1f} s")
        self.expect(taken_s <= most_s, f"{what} took {taken_s:.1f} s, promised {most_s:g} s")
