"""Takes one guard out of the gateway at a time, in a copy of the tree, and runs the row that must turn red.

    python -m tests.faults.lab.mutations [--only NAME ...]

A guard is found by its exact text: one that is no longer there is an error, so that the table cannot rot. The exit code
is 1 if a row stayed as it was.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.nodes import Process
from tests.support.tools import ROOT

__all__ = ["MUTATIONS", "Mutation", "mutate"]

RUN_WITHIN_S = 240.0
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "node_modules", "__pycache__", ".*_cache", ".hypothesis", "build")


@dataclass(frozen=True, slots=True)
class Mutation:
    """One guard. file, old, new: what is taken out and what stands there instead. argv: what must fail without it."""

    guard: str
    file: str
    old: str
    new: str
    argv: tuple[str, ...]

    @property
    def row(self) -> str:
        """What must turn red, as a person would say it."""
        return self.argv[-1]


def _fault(key: str) -> tuple[str, ...]:
    return ("-m", "tests.faults.lab", "faults", "--small", "--only", key)


def _test(path: str, name: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", path, "-k", name)


_SCRIPTS = "gateway/redis/scripts"
MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="tag check",  # all tags alike: a position is epoch and offset alone
        file=f"{_SCRIPTS}/publish.lua",
        old="  return entropy .. string.format('%08x', mixed)",
        new="  return '00000000'",
        argv=_fault("failover"),
    ),
    Mutation(
        guard="canary",
        file="gateway/redis/canary.py",
        old="        elif now - self._sent_at >= self._deadline_s:\n            self._on_missing(now)\n",
        new="",
        argv=_fault("half-open"),
    ),
    Mutation(
        guard="rollback",  # of a subscription that failed
        file="gateway/subscriptions.py",
        old="if key in connection.channels:\n                self.remove(connection, key)\n            raise",
        new="raise",
        argv=_fault("freeze"),
    ),
    Mutation(
        guard="fencing",
        file=f"{_SCRIPTS}/renew.lua",
        old="if redis.call('EXISTS', KEYS[2]) == 1 then",
        new="if false then",
        argv=_fault("stall"),
    ),
    Mutation(
        guard="compare-and-delete",
        file=f"{_SCRIPTS}/release.lua",
        old="if value and (value .. ' '):sub(1, #ARGV[at + 1] + 1) == ARGV[at + 1] .. ' ' then",
        new="if value then",
        argv=_fault("kill"),
    ),
    Mutation(
        guard="idempotency",
        file=f"{_SCRIPTS}/publish.lua",
        old="  if before then\n    return before\n  end",
        new="",
        argv=_fault("replies"),
    ),
    Mutation(
        guard="await of the confirmation",
        file="gateway/subscriptions.py",
        old="        await self._broker.subscribe(key)\n",
        new="        __import__('asyncio').ensure_future(self._broker.subscribe(key))\n",
        argv=_fault("freeze"),
    ),
)


def mutate(tree: Path, mutation: Mutation) -> None:
    """Take the guard out. Raises AssertionError: its text does not stand there exactly once."""
    path = tree / mutation.file
    text = path.read_text(encoding="utf-8")
    count = text.count(mutation.old)
    assert count == 1, f"{mutation.guard}: its text stands {count} times in {mutation.file}, not once:\n{mutation.old}"
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


async def turns_red(mutation: Mutation) -> tuple[bool, str]:
    """Run the row without its guard; returns whether it failed, and what it said last."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
        tree = Path(directory) / "tree"
        shutil.copytree(ROOT, tree, ignore=_LEFT_OUT)
        mutate(tree, mutation)
        process = Process([sys.executable, *mutation.argv], cwd=tree)
        try:
            code = await process.wait(RUN_WITHIN_S)
        except TimeoutError:
            return True, f"did not end within {RUN_WITHIN_S:g} s"
        finally:
            await process.close()
    broken = [line.strip() for line in process.log.splitlines() if "BROKEN:" in line or line.startswith("E  ")]
    return code == 1 and bool(broken), (broken or process.log.strip().splitlines() or [""])[0]


async def main(chosen: list[Mutation]) -> int:
    """Run these, tell each."""
    stayed = 0
    width = max(len(mutation.guard) for mutation in chosen)
    for mutation in chosen:
        began_s = time.monotonic()
        is_red, said = await turns_red(mutation)
        stayed += not is_red
        state = "red" if is_red else "STAYED"
        took_s = time.monotonic() - began_s
        print(f"{mutation.guard:<{width}}  {mutation.row:<14}  {state:<6}  {took_s:3.0f} s  {said[:110]}", flush=True)
    return int(stayed > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults.lab.mutations")
    names = [mutation.guard for mutation in MUTATIONS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="GUARD", help=", ".join(names))
    only = parser.parse_args().only or names
    sys.exit(asyncio.run(main([mutation for mutation in MUTATIONS if mutation.guard in only])))
