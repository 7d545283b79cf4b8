"""The command line of the fault laboratory.

    python -m tests.fault_lab faults [--only KEY ...]
    python -m tests.fault_lab chaos --minutes 30
    python -m tests.fault_lab soak --minutes 120
    (each: [--small] [--seed N] [--no-history])

Prints one table; the exit code is 1 if a promise was broken.
"""

import argparse
import sys
import time
from dataclasses import replace

import uvloop

from tests.fault_lab.campaign import run_faults
from tests.fault_lab.chaos import chaos, summary
from tests.fault_lab.faults import ALL
from tests.fault_lab.plan import Plan
from tests.fault_lab.soak import soak
from tests.fault_lab.table import render

__all__ = ["main"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fault_lab")
    parser.add_argument("mode", choices=["faults", "chaos", "soak"])
    parser.add_argument("--only", nargs="+", choices=sorted(ALL), metavar="KEY", help=f"of {', '.join(ALL)}")
    parser.add_argument("--minutes", type=float, default=30.0, help="of chaos and soak")
    parser.add_argument("--small", action="store_true", help="fewer nodes and clients, less load")
    parser.add_argument("--balancer", action="store_true", help="nginx in front, also of a small lab")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-history", action="store_true", help="channels that keep nothing: at most once")
    return parser.parse_args()


def main() -> int:
    """Run the mode that the command line names."""
    arguments = _arguments()
    plan = Plan(seed=arguments.seed)
    if arguments.small:
        plan = plan.small()
    if arguments.balancer:
        plan = replace(plan, nodes=3, has_balancer=True)  # the shipped nginx.conf lists three nodes
    if arguments.no_history:
        plan = replace(plan, history=0)
    began_s = time.monotonic()
    if arguments.mode == "soak":
        is_broken = _soak(plan, arguments.minutes)
    elif arguments.mode == "chaos":
        outcomes = uvloop.run(chaos(plan, arguments.minutes, arguments.only))
        print(summary(outcomes))
        is_broken = any(outcome.broken for outcome in outcomes)
    else:
        outcomes = uvloop.run(run_faults(plan, arguments.only or list(ALL)))
        print(render(outcomes))
        is_broken = any(outcome.broken for outcome in outcomes)
    print(f"\nseed {plan.seed}, {plan.nodes} nodes, {plan.clients} clients, {plan.channels} channels, ", end="")
    print(f"{plan.rate_per_s:g} messages/s; {time.monotonic() - began_s:.0f} s")
    return int(is_broken)


def _soak(plan: Plan, minutes: float) -> bool:
    growths, broken = uvloop.run(soak(plan, minutes))
    for growth in growths:
        state = "flat" if growth.is_flat else "GROWS"
        print(f"{growth.name:<14} {growth.before:>14,.0f} {growth.after:>14,.0f}  {state}")
    for text in broken:
        print(f"BROKEN: {text}")
    return bool(broken) or not all(growth.is_flat for growth in growths)


if __name__ == "__main__":
    sys.exit(main())
