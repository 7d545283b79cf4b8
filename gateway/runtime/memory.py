"""The garbage collector of a node's process.

A connection has a dozen objects that the collector examines, but none that only the collector can free: they are freed
when the connection ends. With Python's defaults the collector took 40 % of the CPU while 5,000 clients connected.
"""

import gc
from typing import Final

__all__ = ["settle_memory"]

# How many objects a process has more before the youngest generation is examined; then every tenth time the second one,
# and rarely all. The first examines 1 ms.
THRESHOLDS: Final = (10_000, 10, 100)


def settle_memory() -> None:
    """Let the collector ignore what a node has made until it is ready, and look less often for the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
