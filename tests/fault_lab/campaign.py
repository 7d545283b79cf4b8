"""Run rows in one lab: inject each fault under load, wait until the lab is healthy, check what was recorded."""

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.fault_lab.checker import count_resyncs
from tests.fault_lab.faults import ALL
from tests.fault_lab.figures import delays, healed_after_s
from tests.fault_lab.lab import Lab, running_lab
from tests.fault_lab.plan import Plan
from tests.fault_lab.trial import Fault, Outcome, Trial
from tests.fault_lab.visitors import PROBE

__all__ = ["run_fault", "run_faults"]

BEFORE_S = 1.0  # of load before the fault
AFTER_S = 1.5  # of load after recovery
WHOLE_WITHIN_S = 30.0
SHOWN = 5  # to wait for wrong `left` notices


async def run_faults(plan: Plan, keys: Sequence[str]) -> list[Outcome]:
    """Run rows one after another, those of one topology in one lab; print each on stderr when it ends."""
    faults = [ALL[key] for key in keys if plan.history or not ALL[key].needs_history]
    outcomes = []
    for topology in dict.fromkeys(fault.topology for fault in faults):
        with tempfile.TemporaryDirectory(prefix="lab-") as directory:
            async with running_lab(plan, Path(directory), topology) as lab:
                for fault in (fault for fault in faults if fault.topology == topology):
                    outcomes.append(await run_fault(lab, fault))
                    state = "BROKEN" if outcomes[-1].broken else "kept"
                    print(f"{fault.key}: {state} after {outcomes[-1].took_s:.1f} s", file=sys.stderr, flush=True)
    return outcomes


async def run_fault(lab: Lab, fault: Fault) -> Outcome:
    """Run one row. A broken promise never raises; a broken lab does."""
    outcome = Outcome(fault)
    trial = Trial(lab, outcome)
    began_s = time.monotonic()
    lab.mark()
    lab.load.resume()
    await asyncio.sleep(BEFORE_S)
    try:
        await fault.inject(trial)
        await lab.whole(WHOLE_WITHIN_S)
    except (AssertionError, TimeoutError) as error:
        outcome.broken.append(f"not whole again: {error!r}"[:2000])
        lab.write_logs(fault.key)
    await asyncio.sleep(AFTER_S)
    try:
        is_settled = await lab.settle()
    except TimeoutError as error:
        outcome.broken.append(f"the publisher does not come to an end: {error}")
        is_settled = True
    if not is_settled:
        outcome.broken.append("the last messages did not reach everybody")
    verdict, acked = await lab.judge(allows_repeats=fault.allows_repeats, may_vanish=fault.may_vanish)
    outcome.verdict = verdict
    outcome.delays = delays(acked, lab.crowd.journals)
    outcome.healed_s = healed_after_s(acked, lab.crowd.journals, trial.ended_s)
    outcome.took_s = time.monotonic() - began_s
    _hold(trial)
    return outcome


def _hold(trial: Trial) -> None:
    """Check what every row promises."""
    outcome, lab = trial.outcome, trial.lab
    fault, verdict = outcome.fault, outcome.verdict
    silent_loss = verdict.lost if lab.plan.history else 0  # without history delivery is at most once
    trial.expect(not silent_loss, f"{verdict.lost} lost without a notice")
    if verdict.told_late_s:
        trial.figure(
            f"`recovered: true` although a publication was not stored; gap reported {verdict.told_late_s:.1f} s later"
        )
    trial.expect(not verdict.passed_over, f"{verdict.passed_over} published without being stored, without a notice")
    trial.expect(not verdict.duplicated, f"{verdict.duplicated} duplicated")
    trial.expect(not verdict.out_of_order, f"{verdict.out_of_order} out of order")
    trial.expect(not verdict.holes, f"{verdict.holes} holes without a notice")
    trial.expect(outcome.verdict.acked > 0, "nothing was published")
    if not fault.disconnects:
        trial.expect(not verdict.disconnects, f"{verdict.disconnects} subscriptions ended with their connection")
    most = max((count_resyncs(journal) for journal in lab.crowd.journals), default=0)
    allowed = fault.resyncs_max * max(1, trial.times)
    trial.expect(most <= allowed, f"a subscription was resynced {most} times, promised {allowed}")
    trial.expect(
        outcome.healed_s <= fault.healed_within_s,
        f"healed after {outcome.healed_s:.1f} s, promised {fault.healed_within_s:g} s",
    )
    false_lefts = _false_lefts(trial)
    count = false_lefts.total()
    trial.expect(not false_lefts, f"{count} false `left`s: {dict(false_lefts.most_common(SHOWN))}")


def _false_lefts(trial: Trial) -> Counter[str]:
    """Count members reported as `left` while they were connected."""
    dropped = {member.identity for member in trial.lab.crowd.residents if member.drops}
    expected = {PROBE} | dropped | trial.expected_lefts.keys()
    return Counter(
        notice.identity
        for member in trial.lab.crowd.residents
        for notice in member.notices
        if notice.status == "left" and notice.identity not in expected
    )
