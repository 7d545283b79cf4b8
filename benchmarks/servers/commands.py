"""Controls a Python server of the benchmarks: reads lines from stdin, answers lines of JSON, inside its loop."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

__all__ = ["answer", "obey", "run_passes"]


def answer(**values: float) -> None:
    """Print one answer."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


async def obey(handlers: dict[str, Callable[..., Awaitable[None]]]) -> None:
    """Run the handler named by the first word of each line with the integers after it; return when stdin ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        name, *words = line.decode().split()
        await handlers[name](*map(int, words))


async def run_passes(one_pass: Callable[[int], Awaitable[None]], passes: int, burst: int, gap_us: int) -> None:
    """Run one_pass(burst) repeatedly, with a pause in which the receiver catches up; then answer."""
    for _ in range(passes):
        await one_pass(burst)
        await asyncio.sleep(gap_us / 1e6)
    answer(passes=passes)
