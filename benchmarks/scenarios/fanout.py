"""CPU per delivery of every variant, in interleaved repetitions (A B C B C A ...), because machines are never idle."""

import random
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.servers.variants import Rig, Variant
from benchmarks.support.child import ChildFailed
from benchmarks.support.machine import ksoftirqd_s

__all__ = ["BURSTS", "Cell", "measure"]

BURSTS = (1, 10)


@dataclass(slots=True)
class Cell:
    """One variant at one number of clients and one burst: microseconds of CPU per delivery, one per repetition."""

    variant: str
    connections: int
    burst: int
    us: list[float] = field(default_factory=list)
    ksoftirqd_us: list[float] = field(default_factory=list)  # part of `us`, if asked for
    fault: str = ""  # why there are no figures

    @property
    def min_us(self) -> float:
        return min(self.us)

    @property
    def median_us(self) -> float:
        return statistics.median(self.us)

    def ratio_to(self, other: "Cell") -> float:
        """How many times cheaper than `other`: the median of the ratios within each repetition."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.us, other.us, strict=True))


def measure(
    variants: list[Variant],
    connections: int,
    *,
    repetitions: int,
    deliveries: int,
    bursts: Sequence[int] = BURSTS,
    passes_min: int = 1,
    with_ksoftirqd: bool = False,
) -> list[Cell]:
    """Measure all variants in turn. deliveries, passes_min: at least that many in each repetition of a cell.

    with_ksoftirqd: add the CPU of the kernel's thread for network work of the server's CPU.
    """
    cells = [Cell(each.name, connections, burst) for each in variants for burst in bursts]
    by_key = {(cell.variant, cell.burst): cell for cell in cells}
    order = random.Random(connections)  # in which the variants take their turns: the same in each run
    with ExitStack() as stack:
        rigs: dict[str, Rig] = {}
        for variant in variants:
            try:
                rigs[variant.name] = variant.start(connections)
                stack.callback(rigs[variant.name].stop)
            except ChildFailed as error:
                for burst in bursts:
                    by_key[variant.name, burst].fault = str(error)
        for repetition in range(-1, repetitions):  # the first warms up and does not count
            for burst in bursts:
                passes = max(passes_min, deliveries // (connections * burst))
                for name, rig in order.sample(list(rigs.items()), len(rigs)):
                    try:
                        kernel_s = ksoftirqd_s() or 0.0
                        spent_s = rig.cpu_s(passes, burst)
                        kernel_s = (ksoftirqd_s() or 0.0) - kernel_s if with_ksoftirqd else 0.0
                    except ChildFailed as error:
                        del rigs[name]
                        for each in bursts:
                            by_key[name, each].fault = str(error)
                        continue
                    if repetition >= 0:
                        each_us = 1e6 / (passes * burst * connections)
                        by_key[name, burst].us.append((spent_s + kernel_s) * each_us)
                        if with_ksoftirqd:
                            by_key[name, burst].ksoftirqd_us.append(kernel_s * each_us)
            print(f"\r{connections} clients: {repetition + 1}/{repetitions}", end="", file=sys.stderr, flush=True)
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return cells
