"""Rolling restarts under our own client libraries: every node in turn drains, ends, and is started again.

    python -m tests.fault_lab.rolling [--rounds 5] [--clients 1000]

The shipped nginx is in front; half of the clients use clients/python, half clients/js, of which every other one
speaks MessagePack. Required: each client receives every number of its channel once, in order and without a reported
gap, and the other nodes see a handshake peak of at most twice the mean. The exit code is 1 otherwise.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from tests.fault_lab.rates import sampling
from tests.support.clients.js_crowd import JsCrowd, running_js_crowd
from tests.support.clients.numbers import Crowd, Tally, publishing
from tests.support.clients.python_crowd import running_python_crowd
from tests.support.processes.fleet import Fleet, running_fleet

__all__ = ["Drain", "Restarts", "roll"]

NODES = 3  # the shipped nginx.conf lists three nodes
PACE_S = 0.2  # between two numbers of a channel; each goes to a sixth of the clients
PEAK_TO_MEAN_MAX = 2.0
PEAK_NEEDS = 200  # clients that one drain moves: with fewer, the fullest second is random
RESTS = 5  # numbers between two restarts


@dataclass(frozen=True, slots=True)
class Drain:
    """One node's drain. moved: handshakes on the other nodes meanwhile, per second, at the peak and in the mean."""

    node: int
    leaving: int
    moved: int
    peak_per_s: float
    mean_per_s: float
    took_s: float

    @property
    def is_paced(self) -> bool:
        return self.moved < PEAK_NEEDS or self.peak_per_s <= PEAK_TO_MEAN_MAX * self.mean_per_s

    def __str__(self) -> str:
        state = "" if self.is_paced else "  BROKEN"
        pace = f"handshakes/s {self.peak_per_s:.0f} at the peak, {self.mean_per_s:.0f} in the mean"
        ratio = f"{self.peak_per_s / self.mean_per_s:.2f} x" if self.mean_per_s else "none"
        return f"node {self.node}: {self.leaving} clients moved within {self.took_s:.1f} s; {pace}: {ratio}{state}"


@dataclass(slots=True)
class Restarts:
    """The result. closes: connections that ended before their client had another one, by close code."""

    tally: Tally = field(default_factory=Tally)
    drains: list[Drain] = field(default_factory=list)
    closes: list[int] = field(default_factory=list)
    broken: str = ""

    @property
    def is_kept(self) -> bool:
        return not self.broken and all(drain.is_paced for drain in self.drains)


async def roll(directory: Path, *, clients: int, rounds: int, grace_s: float, pace_s: float = PACE_S) -> Restarts:
    """Restart all nodes in turn, `rounds` times, and check. grace_s: over which a node sends clients away."""
    restarts = Restarts()
    env = {"SNORKY_PUBLIC__DRAIN_GRACE_S": str(grace_s)}
    async with running_fleet(directory, nodes=NODES, env=env) as fleet, _crowds(fleet, clients) as crowds:
        try:
            async with publishing(fleet.redis.url, *crowds, pace_s=pace_s) as numbers:
                for index in list(range(NODES)) * rounds:
                    restarts.drains.append(await _restart(fleet, index, grace_s))
                    print(restarts.drains[-1], file=sys.stderr, flush=True)
                    await numbers.more(RESTS)
        except AssertionError as error:
            restarts.broken = str(error)
        restarts.tally = numbers.tally
        restarts.closes = [close["code"] for crowd in crowds if isinstance(crowd, JsCrowd) for close in crowd.closes]
    return restarts


@asynccontextmanager
async def _crowds(fleet: Fleet, clients: int) -> AsyncIterator[list[Crowd]]:
    async with AsyncExitStack() as stack:
        crowds: list[Crowd] = [
            await stack.enter_async_context(running_js_crowd(fleet.url, count=clients // 4, encoding=encoding))
            for encoding in ("json", "msgpack")
        ]
        crowds.append(
            await stack.enter_async_context(running_python_crowd(fleet.url, count=clients - clients // 4 * 2))
        )
        yield crowds


async def _restart(fleet: Fleet, index: int, grace_s: float) -> Drain:
    """Drain one node and start another in its place."""
    node = fleet.nodes[index]
    others = [each for each in fleet.nodes if each is not node]
    leaving = int(await node.metric("snorky_connections"))

    async def handshakes() -> float:
        return sum(await asyncio.gather(*(each.metric("snorky_connections_opened_total") for each in others)))

    began_s = time.monotonic()
    async with sampling(handshakes) as rates:
        node.terminate()
        await node.wait()
    took_s = time.monotonic() - began_s
    await fleet.replace(index)
    return Drain(index, leaving, int(rates.total), rates.peak_per_s, rates.total / grace_s, took_s)


def main() -> int:
    """Parse the command line and run the rounds."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault_lab.rolling")
    parser.add_argument("--rounds", type=int, default=5, help="how often each node is restarted (5)")
    parser.add_argument("--clients", type=int, default=1_000, help="half of them Python, half JavaScript (1000)")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds over which a node sends them away (10)")
    options = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rolling-") as directory:
        restarts = uvloop.run(
            roll(Path(directory), clients=options.clients, rounds=options.rounds, grace_s=options.grace)
        )
    print(*restarts.drains, sep="\n")
    print(f"{len(restarts.drains)} restarts in {time.monotonic() - began_s:.0f} s; {restarts.tally}")
    print(f"connections of JavaScript clients that ended before their successor stood: {len(restarts.closes)}")
    if restarts.broken:
        print(f"BROKEN: {restarts.broken}")
    return int(not restarts.is_kept)


if __name__ == "__main__":
    sys.exit(main())
