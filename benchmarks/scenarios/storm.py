"""A node dies, and its clients come back to another node at once, each with the messages that it missed.

python -m benchmarks.scenarios.storm 10000    # of any size

Meanwhile other clients of that node receive messages on another channel: how late are these?
"""

import argparse
import sys
from dataclasses import dataclass

from benchmarks.receivers.receiver import Receiver
from benchmarks.servers.redis_server import RedisServer
from benchmarks.servers.variants import gateway
from benchmarks.support.child import Child, ChildFailed, raise_file_limit
from benchmarks.support.machine import receiver_cpu
from benchmarks.support.message import subscribe

__all__ = ["Storm", "storm"]

CALM = 100  # clients that were connected before, on another channel
CALM_PER_S = 100  # messages to each of them
QUIET_S = 10
STORM_S = 20  # the other clients receive messages for this time
TIMEOUT_S = 60.0
WARM = 200


@dataclass(frozen=True, slots=True)
class Storm:
    """Clients that come back at once. Times of theirs: from the first connect to a client's missed messages.

    refused: handshakes answered with an error. closed: connections that ended without an answer; after both a client
    comes again. rss_bytes: growth of the node. calm and quiet: 99th percentile of the latencies of the others' messages
    during and before it.
    """

    clients: int
    recovered: int
    refused: int
    closed: int
    not_recovered: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_s: float
    rss_bytes: int
    quiet_p99_ms: float
    calm_p99_ms: float
    calm_max_ms: float


def storm(clients: int) -> Storm:
    """Measure it on one node, on a CPU of its own. Raises ChildFailed."""
    cpu = receiver_cpu()
    with RedisServer() as redis, gateway(redis.url) as server:
        port = int(server.answer()["port"])
        returning = [sys.executable, "-m", "benchmarks.receivers.returning_clients", str(port)]
        with (
            Receiver(port, CALM, cpu=cpu, send=subscribe(), sample=1) as calm,
            # in production clients take no CPU from Redis, the publisher and the others, with which they share it here
            Child(returning, cpu=cpu, gives_way=True) as crowd,
        ):
            crowd.ask("miss")
            crowd.ask(f"return {WARM} {TIMEOUT_S * 1e3:.0f}", TIMEOUT_S + 10)
            with _publishing(redis, QUIET_S) as pacer:
                calm.mark()
                pacer.answer(QUIET_S + 60.0)
                quiet = calm.wait(QUIET_S * CALM_PER_S * CALM)
            rss, cpu_s = server.rss_bytes(), server.cpu_s()
            with _publishing(redis, STORM_S):
                calm.mark()
                found = crowd.ask(f"return {clients} {TIMEOUT_S * 1e3:.0f}", TIMEOUT_S + 10)
                late = calm.ask("wait 1 0")
            if found["recovered"] != clients:
                raise ChildFailed(f"not all clients have recovered: {found}")
            return Storm(
                clients, int(found["recovered"]), int(found["refused"]), int(found["closed"]),
                int(found["not_recovered"]), found["p50_ms"], found["p99_ms"], found["max_ms"],
                server.cpu_s() - cpu_s, server.rss_bytes() - rss, quiet["p99_ms"], late["p99_ms"], late["max_ms"],
            )  # fmt: skip


def _publishing(redis: RedisServer, seconds: int) -> Child:
    argv = [sys.executable, "-m", "benchmarks.support.pacer", str(redis.port), str(CALM_PER_S), str(seconds)]
    return Child(argv, cpu=receiver_cpu())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", type=int)
    options = parser.parse_args()
    raise_file_limit()
    print(storm(options.clients))


if __name__ == "__main__":
    main()
