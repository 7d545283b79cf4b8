"""A backend job that publishes evenly through Redis, each message with the time at which it was sent.

    python -m benchmarks.support.pacer REDIS_PORT MESSAGES_PER_S SECONDS

Plain PUBLISH commands on a socket of its own, without waiting for replies. stdout: one line when done: how many were
published, how many of them had no receiver, and how late the latest one was sent.
"""

import socket
import sys
import time

from benchmarks.servers.commands import answer
from benchmarks.servers.redis_server import request
from benchmarks.support.message import compact, payload, redis_channel

__all__: list[str] = []


def publish(connection: socket.socket, per_s: int, seconds: int) -> None:
    """Publish per_s * seconds messages, one every 1 / per_s."""
    channel = redis_channel().encode()
    total, replies, late_s = per_s * seconds, b"", 0.0
    start_s = time.monotonic()
    for number in range(total):
        due_s = start_s + number / per_s
        if (wait_s := due_s - time.monotonic()) > 0:
            time.sleep(wait_s)
        now_ns = time.monotonic_ns()
        late_s = max(late_s, now_ns / 1e9 - due_s)
        connection.sendall(request(b"PUBLISH", channel, compact(payload(now_ns))))
        if number % 64 == 63:
            replies += connection.recv(65536)
    elapsed_s = time.monotonic() - start_s
    while replies.count(b"\n") < total:
        replies += connection.recv(65536)
    answer(published=total, unheard=replies.count(b":0\r\n"), late_max_ms=late_s * 1e3, elapsed_s=elapsed_s)


def main() -> None:
    port, per_s, seconds = map(int, sys.argv[1:])
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        publish(connection, per_s, seconds)
    sys.stdin.read()  # the harness ends it, like every child


if __name__ == "__main__":
    main()
