"""Commands that clients send to a Redis, by their names: those that scripts run are not among them."""

import re
import socket
import time
from collections import Counter

from benchmarks.servers.redis_server import RedisServer, request

__all__ = ["info", "sent_commands"]

_LINE = re.compile(rb'\+[\d.]+ \[\d+ (\S+)\] "([^"]*)"')


def sent_commands(redis: RedisServer, seconds: float) -> tuple[Counter[str], int]:
    """Count the commands of this many seconds by MONITOR. Returns them, and the bytes of MONITOR's own answers."""
    sent: Counter[str] = Counter()
    size, rest = 0, b""
    with redis.connect() as connection:
        connection.sendall(request(b"MONITOR"))
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            connection.settimeout(left_s)
            try:
                found = connection.recv(1 << 20)
            except TimeoutError:
                break
            size += len(found)
            *lines, rest = (rest + found).split(b"\r\n")
            for match in map(_LINE.match, lines):
                if match is not None and match[1] != b"lua":
                    sent[match[2].decode().lower()] += 1
    return sent, size


def info(connection: socket.socket, section: str) -> dict[str, str]:
    """Return a section of INFO."""
    connection.sendall(request(b"INFO", section.encode()))
    reply = b""
    while not reply.startswith(b"$") or len(reply) < reply.index(b"\r\n") + 4 + int(reply[1 : reply.index(b"\r\n")]):
        reply += connection.recv(1 << 16)
    return dict(line.split(":", 1) for line in reply.decode().splitlines()[1:] if ":" in line)
