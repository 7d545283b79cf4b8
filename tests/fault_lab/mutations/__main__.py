"""Removes one guard of the gateway at a time, in a copy of the tree, and runs the row or test that must fail.

    python -m tests.fault_lab.mutations [--only GUARD ...] [--part 1/2] [--list]

With --part, several processes share the table. The exit code is 1 if one of them did not fail.
"""

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from difflib import get_close_matches
from pathlib import Path

from tests.fault_lab.mutations import MUTATIONS, Mutation, mutate
from tests.support.processes.nodes import Process
from tests.support.processes.tools import ROOT

__all__ = ["main", "turns_red"]

RUN_WITHIN_S = 240.0
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "node_modules", "__pycache__", ".*_cache", ".hypothesis", "build")


async def turns_red(mutation: Mutation) -> tuple[bool, str]:
    """Run the row or test without its guard; returns whether it failed, and its last output."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
        tree = Path(directory) / "tree"
        shutil.copytree(ROOT, tree, ignore=_LEFT_OUT)
        mutate(tree, mutation)
        packages = str(Path(directory) / "packages")  # before the installed ones, which are the tree that is whole
        linking = Process([sys.executable, str(tree / "scripts/link-packages"), packages])
        try:
            assert await linking.wait() == 0, linking.log
        finally:
            await linking.close()
        process = Process([sys.executable, *mutation.argv], cwd=tree, env={"PYTHONPATH": packages})
        try:
            code = await process.wait(RUN_WITHIN_S)
        except subprocess.TimeoutExpired:
            return True, f"did not end within {RUN_WITHIN_S:g} s"
        finally:
            await process.close()
    broken = [
        line.strip() for line in process.log.splitlines() if "BROKEN:" in line or line.startswith(("E  ", "FAILED "))
    ]
    return code == 1 and bool(broken), (broken or process.log.strip().splitlines() or [""])[0]


async def main(chosen: list[Mutation]) -> int:
    """Run these mutations and print each result."""
    stayed = 0
    width = max(len(mutation.guard) for mutation in chosen)
    for mutation in chosen:
        began_s = time.monotonic()
        is_red, said = await turns_red(mutation)
        stayed += not is_red
        state = "red" if is_red else "STAYED"
        took_s = time.monotonic() - began_s
        print(f"{mutation.guard:<{width}}  {state:<6}  {took_s:3.0f} s  {mutation.row}: {said[:110]}", flush=True)
    return int(stayed > 0)


def guard(name: str) -> str:
    """Check the name of a row. Raises ArgumentTypeError, with the nearest names."""
    names = [mutation.guard for mutation in MUTATIONS]
    if name in names:
        return name
    near = get_close_matches(name, names, n=5, cutoff=0.3)
    raise argparse.ArgumentTypeError(f"no such guard: {name}; near: {'; '.join(near)}; all: --list")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fault_lab.mutations")
    parser.add_argument("--list", action="store_true", help="print the names of all guards")
    parser.add_argument("--only", nargs="+", type=guard, metavar="GUARD", help="these guards")
    parser.add_argument("--part", default="1/1", metavar="N/M", help="every Mth row, beginning with the Nth")
    given = parser.parse_args()
    if given.list:
        print("\n".join(mutation.guard for mutation in MUTATIONS))
        sys.exit()
    begin, step = map(int, given.part.split("/"))
    chosen = [mutation for mutation in MUTATIONS if not given.only or mutation.guard in given.only]
    sys.exit(asyncio.run(main(chosen[begin - 1 :: step])))
