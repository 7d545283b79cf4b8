"""Seeded cases of a fuzzer. SNORKY_FUZZ_SEED repeats a run, SNORKY_FUZZ_CASES changes its length."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Final

__all__ = ["CASES", "SEED", "WAIT_S", "mutated", "random_of", "run_cases"]

SEED: Final = int(os.environ.get("SNORKY_FUZZ_SEED", "20261130"))
CASES: Final = int(os.environ.get("SNORKY_FUZZ_CASES", "10000"))
AT_ONCE: Final = 50
WAIT_S: Final = 0.05  # for an answer that may not come


def random_of(case: int) -> random.Random:
    """Return the random numbers of a case: the same in each run with the same seed."""
    return random.Random(SEED * 1_000_003 + case)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Change some bytes of every fourth text, and cut some of them short."""
    if rng.random() < 0.75 or not data:
        return data
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.choice((len(changed), rng.randrange(len(changed))))])


async def run_cases(run: Callable[[int], Awaitable[None]], tell: Callable[[str], None] = print) -> None:
    """Run all cases, AT_ONCE at the same time; an error names its case."""
    waiting = iter(range(CASES))

    async def worker() -> None:
        for number in waiting:
            try:
                await run(number)
            except Exception as error:
                error.add_note(f"case {number} of seed {SEED}")
                raise
            if number % 2000 == 1999:
                tell(f"{number + 1} cases")

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
