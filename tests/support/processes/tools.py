"""Helpers of tests with real programs: finding programs, free ports, polling."""

import asyncio
import random
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from tests.conftest import find_program

__all__ = ["ROOT", "eventually", "free_port", "program", "venv_program"]

ROOT = Path(__file__).resolve().parents[3]
_ASK_EVERY_S = 0.05
_T = TypeVar("_T")


_PORTS = random.SystemRandom()  # Hypothesis makes the other one repeat itself
_given: set[int] = set()


def program(name: str) -> str:
    """Return the path of a program. The test needs `@pytest.mark.needs(name)`, so it exists."""
    path = find_program(name)
    assert path is not None, f"{name} is missing: mark the test with pytest.mark.needs({name!r})"
    return path


def venv_program(name: str) -> str:
    """Return the path of a program that a test dependency installs next to the interpreter."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{name} is missing: pip install -e '.[test]'"
    return str(path)


def free_port() -> int:
    """Find a free TCP port on loopback, for programs that cannot report which port they chose.

    Below the kernel's range for clients: in that range a port that was free a moment ago is soon taken. No port is
    returned twice, because it may not be in use yet.
    """
    for _ in range(100):
        port = _PORTS.randint(10_000, 32_000)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise AssertionError("no free port found")


async def eventually(ask: Callable[[], Awaitable[_T]], *, within_s: float, what: str) -> _T:
    """Poll until the answer is true, and return it. For state of other processes that cannot be awaited.

    Raises AssertionError with the last answer: not within the time.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while True:
        answer = await ask()
        if answer:
            return answer
        assert loop.time() < deadline_s, f"not within {within_s} s: {what}; last: {answer!r}"
        await asyncio.sleep(_ASK_EVERY_S)
