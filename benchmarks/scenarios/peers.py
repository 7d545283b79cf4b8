"""The fan-out of this gateway beside other servers, and beside loops in C, in one run: `--peers`.

Each size of bursts has new servers and connections: after bursts that a server joins into one segment, its single
messages on the same connections were about 10 % cheaper.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from benchmarks.peers.servers import peers
from benchmarks.scenarios.fanout import Cell, measure
from benchmarks.servers.variants import BASELINE, BASELINE_RING, GATEWAY, Variant, c_loop, from_within
from benchmarks.support.compiler import compiled
from benchmarks.support.machine import ksoftirqd_s
from snorky.gateway.connection.native.direct_sender import DirectSender

__all__ = ["PEER_BURSTS", "PYTHON_PATH", "compare"]

PEER_BURSTS: Final = (1, 40)
PYTHON_PATH: Final = f"{GATEWAY}, Python only"


def compare(*, is_quick: bool, note: Callable[[str], None]) -> tuple[list[Cell], list[str]]:
    """Measure everything that can be installed. Returns the cells, and remarks about what the figures are of.

    A cell of a server that could not be installed or started has a `fault`.
    """
    found = [Variant(BASELINE, c_loop), Variant(BASELINE_RING, partial(c_loop, by_ring=True))]
    if not compiled("servers/sendloop"):
        found.clear()
    found += [Variant(GATEWAY, from_within()), Variant(PYTHON_PATH, from_within(native_fanout="off")), *peers(note)]
    cells: list[Cell] = []
    for connections, deliveries, repetitions in ((10, 1_000, 17), (100, 10_000, 9), (1_000, 20_000, 9)):
        for burst in PEER_BURSTS:
            note(f"fan-out to {connections:,} clients, bursts of {burst}")
            cells += measure(
                found,
                connections,
                repetitions=3 if is_quick else repetitions,
                deliveries=deliveries // 2 if is_quick else deliveries,
                bursts=(burst,),
                with_ksoftirqd=True,
            )
    sender = DirectSender()
    remarks = [f"{GATEWAY} writes with {sender.path}" + (f": {sender.reason}" if sender.reason else "")]
    if ksoftirqd_s() is None:
        remarks.append(
            "ksoftirqd cannot be read here: what it does for sends, above all for io_uring, is not in the figures"
        )
    else:
        remarks.append("figures include ksoftirqd of the server's CPU, which other programs use too")
    remarks.append("uWebSockets.js: not measured, it is not on npm; socketify contains the same library in C++")
    return cells, remarks
