"""Through Redis at a steady rate: is everything delivered, how late, and at what cost?"""

import sys
from dataclasses import dataclass

from benchmarks.receivers.receiver import Receiver
from benchmarks.servers.redis_server import RedisServer
from benchmarks.servers.variants import gateway
from benchmarks.support.child import Child, ChildFailed
from benchmarks.support.machine import receiver_cpu
from benchmarks.support.message import subscribe

__all__ = ["Sustained", "sustain"]

SAMPLE = 50  # the latencies of one connection out of this many are recorded: each gets every message
DRAIN_S = 5.0  # a message that arrives later than this after the last publication counts as lost


@dataclass(frozen=True, slots=True)
class Sustained:
    """One run. Latencies: from before PUBLISH to after recv().

    cpu_share: of one CPU, used by the node; receiver_share: by the receiver. waited_share: time in which the node had
    work and other programs had its CPU; if that is large, they cause the latencies.
    """

    per_s: int
    connections: int
    seconds: int
    published: int
    expected: int
    received: int
    out_of_order: int
    samples: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    late_max_ms: float
    cpu_share: float
    receiver_share: float
    waited_share: float
    us_per_delivery: float

    @property
    def lost(self) -> int:
        return self.expected - self.received


def sustain(redis: RedisServer, *, per_s: int, connections: int, seconds: int) -> Sustained:
    """Publish per_s messages a second for `seconds` to that many subscribers of one node. Raises ChildFailed."""
    with gateway(redis.url) as server:
        port = int(server.answer()["port"])
        with Receiver(port, connections, cpu=receiver_cpu(), send=subscribe(), sample=SAMPLE) as receiver:
            _publish(redis, per_s, 1)  # warms up and does not count
            receiver.wait(per_s * connections)
            receiver.mark()
            before_s, receiver_before_s, waited_before_s = server.cpu_s(), receiver.cpu_s(), server.waited_s()
            pace = _publish(redis, per_s, seconds)
            expected = int(pace["published"]) * connections
            counts = receiver.ask(f"wait {expected} {DRAIN_S * 1000:.0f}")
            waited_s = server.waited_s() - waited_before_s
            cpu_s, receiver_s = server.cpu_s() - before_s, receiver.cpu_s() - receiver_before_s
    received = int(counts["messages"])
    if not received:
        raise ChildFailed("nothing was delivered")
    return Sustained(
        per_s, connections, seconds, int(pace["published"]), expected, received, int(counts["out_of_order"]),
        int(counts["samples"]), counts["p50_ms"], counts["p99_ms"], counts["max_ms"], pace["late_max_ms"],
        cpu_s / pace["elapsed_s"], receiver_s / pace["elapsed_s"], waited_s / pace["elapsed_s"], cpu_s * 1e6 / received,
    )  # fmt: skip


def _publish(redis: RedisServer, per_s: int, seconds: int) -> dict[str, float]:
    argv = [sys.executable, "-m", "benchmarks.support.pacer", str(redis.port), str(per_s), str(seconds)]
    with Child(argv, cpu=receiver_cpu()) as pacer:
        return pacer.answer(seconds + 60)
