"""The garbage collector of a node's process.

A connection has a dozen objects that the collector examines. Most are freed when it ends, without the collector. With
Python's defaults the collector took 40 % of the CPU while 5,000 clients connected.
"""

import gc
from typing import Final

__all__ = ["settle_memory"]

# The young are examined after 500 more objects, and once more after 1,500, which takes up to 3 ms because most of what
# they refer to is not in the CPU's cache. All are examined only after 1,500,000, those of 50,000 clients: that stops a
# node with 10,000 clients for 100 ms.
THRESHOLDS: Final = (500, 2, 1_000)


def settle_memory() -> None:
    """Let the collector ignore what a node has made until it is ready, and look less often for the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
