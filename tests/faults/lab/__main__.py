"""The command line of the fault laboratory.

    python -m tests.faults.lab faults [--only KEY ...] [--small] [--seed N] [--no-history]

Prints one table; the exit code is 1 if a promise was broken.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.faults.lab.campaign import run_fault
from tests.faults.lab.faults import ALL
from tests.faults.lab.lab import running_lab
from tests.faults.lab.plan import Plan
from tests.faults.lab.table import render
from tests.faults.lab.trial import Outcome

__all__ = ["main"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.lab")
    parser.add_argument("mode", choices=["faults"])
    parser.add_argument("--only", nargs="+", choices=sorted(ALL), metavar="KEY", help=f"of {', '.join(ALL)}")
    parser.add_argument("--small", action="store_true", help="fewer nodes and clients, less load")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-history", action="store_true", help="channels that keep nothing: at most once")
    return parser.parse_args()


async def faults(plan: Plan, keys: list[str]) -> list[Outcome]:
    """Run rows one after another in one lab."""
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="lab-") as directory:
        async with running_lab(plan, Path(directory)) as lab:
            for key in keys:
                if ALL[key].needs_history and not plan.history:
                    continue
                outcome = await run_fault(lab, ALL[key])
                outcomes.append(outcome)
                state = "BROKEN" if outcome.broken else "kept"
                print(f"{key}: {state} after {outcome.took_s:.1f} s", file=sys.stderr, flush=True)
    return outcomes


def main() -> int:
    """Run what the command line says."""
    arguments = _arguments()
    plan = Plan(seed=arguments.seed)
    if arguments.small:
        plan = plan.small()
    if arguments.no_history:
        plan = replace(plan, history=0)
    began_s = time.monotonic()
    outcomes = asyncio.run(faults(plan, arguments.only or list(ALL)))
    print(render(outcomes))
    print(f"\nseed {plan.seed}, {plan.nodes} nodes, {plan.clients} clients, {plan.channels} channels, ", end="")
    print(f"{plan.rate_per_s:g} messages/s; {time.monotonic() - began_s:.0f} s")
    return int(any(outcome.broken for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
