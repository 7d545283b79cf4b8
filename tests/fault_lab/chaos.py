"""Chaos: faults drawn at random in one lab until the time is over. The same seed draws the same faults."""

import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fault_lab.campaign import run_fault
from tests.fault_lab.faults import ALL
from tests.fault_lab.lab import running_lab
from tests.fault_lab.plan import Plan
from tests.fault_lab.trial import Fault, Outcome

__all__ = ["chaos", "summary"]

MINGLE_SHARE = 0.3  # between two faults, for clients to reconnect: a client that a node sent away does not return to it


async def chaos(plan: Plan, minutes: float, keys: Sequence[str] | None = None) -> list[Outcome]:
    """Run faults one after another under one load until the time is over; print each when it ends."""
    rng = random.Random(plan.seed)
    drawn_from: list[Fault] = [fault for key, fault in ALL.items() if fault.is_random and (not keys or key in keys)]
    until_s = time.monotonic() + 60 * minutes
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="lab-") as directory:
        async with running_lab(plan, Path(directory)) as lab:
            while time.monotonic() < until_s:
                await lab.crowd.mingle(MINGLE_SHARE, within_s=15)
                outcome = await run_fault(lab, rng.choice(drawn_from))
                outcomes.append(outcome)
                print(_line(outcome), file=sys.stderr, flush=True)
    return outcomes


def _line(outcome: Outcome) -> str:
    verdict = outcome.verdict
    counts = (
        f"{verdict.lost}/{verdict.duplicated}/{verdict.out_of_order} holes {verdict.holes} resyncs {verdict.resyncs}"
    )
    broken = "".join(f"\n    BROKEN: {text}" for text in outcome.broken)
    return f"{time.strftime('%H:%M:%S')}  {outcome.fault.name}: {counts}; {outcome.took_s:.0f} s{broken}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """Summarize a run: what was lost, and which faults made clients resynchronize."""
    lost = sum(outcome.verdict.lost + outcome.verdict.holes for outcome in outcomes)
    duplicated = sum(outcome.verdict.duplicated for outcome in outcomes)
    out_of_order = sum(outcome.verdict.out_of_order for outcome in outcomes)
    delivered = sum(outcome.verdict.delivered for outcome in outcomes)
    acked = sum(outcome.verdict.acked for outcome in outcomes)
    lines = [
        f"{len(outcomes)} faults, {acked} messages acknowledged, {delivered} deliveries",
        f"silent loss {lost}, duplicated {duplicated}, out of order {out_of_order}",
        f"reported resyncs {sum(outcome.verdict.resyncs for outcome in outcomes)}",
    ]
    by_fault: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_fault.setdefault(outcome.fault.name, []).append(outcome)
    for name, several in sorted(by_fault.items()):
        resyncs = sum(outcome.verdict.resyncs for outcome in several)
        broken = sum(bool(outcome.broken) for outcome in several)
        lines.append(f"  {name}: {len(several)} times, {resyncs} resyncs, {broken} broken")
    return "\n".join(lines)
