"""`python -m benchmarks.scenarios.slow`: 100 of 1,100 clients stop reading. The effect on the others, and the cost.

One node, one Redis, loopback; 500 publications a second to one channel. Alternately without slow clients, and with 100
additional connections that subscribe and read nothing: their messages are queued in the node's memory, and a client
with more than a mebibyte queued would be closed. The others' latency is from before PUBLISH to after recv().
Figures: benchmarks/README.md.
"""

import base64
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.receivers.receiver import Receiver
from benchmarks.servers.redis_server import RedisServer
from benchmarks.servers.variants import gateway
from benchmarks.support.child import Child, raise_file_limit
from benchmarks.support.machine import describe, receiver_cpu
from benchmarks.support.message import PATH, subscribe

__all__: list[str] = []

HEALTHY = 1_000
SLOW = 100
PER_S = 500
SECONDS = 16  # 1.3 MB for each connection: about the limit of one queue, the kernel's buffers included
REPETITIONS = 3
SAMPLE = 20
RETURNED_S = 2.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run. peak_kib, kept_kib: growth of the node's memory per slow client, at most and 2 s after the end."""

    p50_ms: float
    p99_ms: float
    lost: int
    peak_kib: float
    kept_kib: float


@contextmanager
def stalled(port: int, count: int) -> Iterator[None]:
    """Open that many subscribed connections that then read nothing."""
    key = base64.b64encode(os.urandom(16)).decode()
    head = (
        f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    body = subscribe().encode()
    masked = b"\x81" + bytes([0x80 | len(body)]) + bytes(4) + body  # a mask of zeros changes nothing
    sockets = []
    try:
        for _ in range(count):
            sockets.append(socket.socket())
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sockets[-1].connect(("127.0.0.1", port))
            sockets[-1].sendall(head.encode() + masked)
            answer = b""
            while b'"callId":1' not in answer:
                answer += sockets[-1].recv(4096)
        yield
    finally:
        for each in sockets:
            each.close()


def run(redis: RedisServer, slow: int) -> Run:
    """Publish for a while to healthy subscribers and that many slow ones."""
    with gateway(redis.url) as server:
        port = int(server.answer()["port"])
        with Receiver(port, HEALTHY, cpu=receiver_cpu(), send=subscribe(), sample=SAMPLE) as receiver:
            publish(redis, 1)  # warms up and does not count
            receiver.wait(PER_S * HEALTHY)
            with stalled(port, slow):
                receiver.mark()
                idle_bytes = server.rss_bytes()
                expected = int(publish(redis, SECONDS)["published"]) * HEALTHY
                counts = receiver.ask(f"wait {expected} 5000")
                peak_bytes = server.rss_bytes()
                time.sleep(RETURNED_S)
                kept_bytes = server.rss_bytes()
    lost = expected - int(counts["messages"])
    each = 1024 * max(slow, 1)
    return Run(
        counts["p50_ms"], counts["p99_ms"], lost, (peak_bytes - idle_bytes) / each, (kept_bytes - idle_bytes) / each
    )


def publish(redis: RedisServer, seconds: int) -> dict[str, float]:
    """Publish evenly, from a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.support.pacer", str(redis.port), str(PER_S), str(seconds)]
    with Child(argv, cpu=receiver_cpu()) as pacer:
        return pacer.answer(seconds + 60)


def told(what: str, one: Run) -> str:
    """Make a line of the table."""
    latency = f"p50 {one.p50_ms:6.1f} ms  p99 {one.p99_ms:6.1f} ms  {one.lost} lost"
    return f"{HEALTHY:,} healthy, {what:<16}  {latency}"


def main() -> None:
    raise_file_limit()
    print(*describe(), sep="\n")
    ratios = []
    with RedisServer() as redis:
        for _ in range(REPETITIONS):
            calm, stormy = run(redis, 0), run(redis, SLOW)
            ratios.append(stormy.p99_ms / calm.p99_ms)
            memory = f"{stormy.peak_kib:.0f} KiB for each slow one, {stormy.kept_kib:.0f} KiB {RETURNED_S:g} s later"
            print(told("none slow", calm))
            print(f"{told(f'{SLOW} read nothing', stormy)}  {memory}", flush=True)
    print(f"p99 of the healthy: {statistics.median(ratios):.2f} x, the median of {REPETITIONS} pairs")


if __name__ == "__main__":
    main()
