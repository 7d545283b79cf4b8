"""Cost of an idle connection: resident memory of the server, and CPU of connecting, handshake included."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.receivers.receiver import Receiver
from benchmarks.support.child import Child
from benchmarks.support.machine import receiver_cpu

__all__ = ["Connections", "connect", "medians"]

WARM = 200  # connections before the first measurement: modules are imported and pools filled by then
SETTLE_S = 1.0  # until the memory of handshakes is released


@dataclass(frozen=True, slots=True)
class Connections:
    """Cost of `connections` more connections to one server."""

    name: str
    connections: int
    bytes_each: float
    connect_ms: float  # CPU of the server
    has_own_channel: bool  # the figure includes the connection and its channel
    per_s: float  # as fast as possible, one CPU each for server and clients

    @property
    def kib_each(self) -> float:
        return self.bytes_each / 1024


def connect(name: str, start: Callable[[], Child], connections: int, *, send: str | None = None) -> Connections:
    """Open that many connections to a fresh server, each sending `send`, if anything. Raises ChildFailed."""
    with start() as server:
        port = int(server.answer()["port"])
        with Receiver(port, WARM, cpu=receiver_cpu(), send=send):
            time.sleep(SETTLE_S)
            rss_before, cpu_before_s = server.rss_bytes(), server.cpu_s()
            with Receiver(port, connections, cpu=receiver_cpu(), send=send) as receiver:
                cpu_s = server.cpu_s() - cpu_before_s
                time.sleep(SETTLE_S)
                grown = server.rss_bytes() - rss_before
                connect_s = receiver.connect_s
    return Connections(
        name=name,
        connections=connections,
        bytes_each=grown / connections,
        connect_ms=cpu_s * 1e3 / connections,
        has_own_channel=send is not None and "%d" in send,
        per_s=connections / connect_s,
    )


def medians(runs: Sequence[Connections]) -> Connections:
    """Combine the runs of one variant: each figure's median."""
    first = runs[0]
    return Connections(
        name=first.name,
        connections=first.connections,
        bytes_each=median(run.bytes_each for run in runs),
        connect_ms=median(run.connect_ms for run in runs),
        has_own_channel=first.has_own_channel,
        per_s=median(run.per_s for run in runs),
    )
