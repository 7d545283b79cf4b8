"""CPU per delivery of every variant, in interleaved repetitions (A B C B C A ...), because machines are never idle."""

import random
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.servers.variants import Rig, Variant
from benchmarks.support.child import ChildFailed

__all__ = ["BURSTS", "Cell", "measure"]

BURSTS = (1, 10)


@dataclass(slots=True)
class Cell:
    """One variant at one number of clients and one burst: microseconds of CPU per delivery, one per repetition."""

    variant: str
    connections: int
    burst: int
    us: list[float] = field(default_factory=list)
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


def measure(variants: list[Variant], connections: int, *, repetitions: int, deliveries: int) -> list[Cell]:
    """Measure all variants in turn. deliveries: at least that many in each repetition of a cell."""
    cells = [Cell(each.name, connections, burst) for each in variants for burst in BURSTS]
    by_key = {(cell.variant, cell.burst): cell for cell in cells}
    order = random.Random(connections)  # in which the variants take their turns: the same in each run
    with ExitStack() as stack:
        rigs: dict[str, Rig] = {}
        for variant in variants:
            try:
                rigs[variant.name] = variant.start(connections)
                stack.callback(rigs[variant.name].stop)
            except ChildFailed as error:
                for burst in BURSTS:
                    by_key[variant.name, burst].fault = str(error)
        for repetition in range(-1, repetitions):  # the first warms up and does not count
            for burst in BURSTS:
                passes = max(1, deliveries // (connections * burst))
                for name, rig in order.sample(list(rigs.items()), len(rigs)):
                    try:
                        spent_s = rig.cpu_s(passes, burst)
                    except ChildFailed as error:
                        del rigs[name]
                        for each in BURSTS:
                            by_key[name, each].fault = str(error)
                        continue
                    if repetition >= 0:
                        by_key[name, burst].us.append(spent_s * 1e6 / (passes * burst * connections))
            print(f"\r{connections} clients: {repetition + 1}/{repetitions}", end="", file=sys.stderr, flush=True)
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return cells
