"""Clients that all come back at once: their node has died, and each recovers the messages that it missed.

    python -m benchmarks.receivers.returning_clients PORT

    miss                 publish MISSED messages to each of CHANNELS channels; clients know the position before them
    return CLIENTS TIMEOUT_MS
                         connect that many at once; answers when all have recovered, or at the timeout

A client that is refused or closed tries again as our libraries do: after a random time below a bound that doubles, and
not before the time that the refusal names. All times count from the moment at which the first one connects.
"""

import base64
import json
import os
import random
import re
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

from benchmarks.receivers.python_receiver import masked
from benchmarks.servers.commands import answer
from benchmarks.support.message import PATH, compact, payload

__all__ = ["CHANNELS", "MISSED"]

CHANNELS: Final = 50
MISSED: Final = 20
ADDRESSES: Final = 4  # of the clients: one address has too few ports
BACKOFF_BASE_S: Final = 0.5
BACKOFF_MAX_S: Final = 20.0
READ_BYTES: Final = 65_536
HEAD_END: Final = b"\r\n\r\n"
FAILURES: Final = ("refused", "closed", "not_recovered")

_RETRY_AFTER: Final = re.compile(rb"\r\nRetry-After: (\d+)", re.IGNORECASE)


def channel(number: int) -> str:
    """Name a channel. The node keeps the histories of those that begin with `kept-`."""
    return f"kept-{number % CHANNELS}"


def request(command: str, **params: object) -> bytes:
    """Make the frame of a request to the pub/sub service."""
    return masked(1, compact({"service": "pubsub", "message": {"command": command, "params": params, "callId": 1}}))


def whole_message(data: bytes) -> tuple[bytes, bytes] | None:
    """Return the first message in data, without pings before it, and what follows it; None: it is not complete."""
    while len(data) >= 2:
        head, size = 2, data[1]
        if size >= 126:
            head = 4 if size == 126 else 10
            size = int.from_bytes(data[2:head])
        end = head + size
        if len(data) < end:
            return None
        if data[0] & 0x0F < 8:
            return data[head:end], data[end:]
        data = data[end:]
    return None


class Client:
    """One client, from its first connect until it has recovered."""

    __slots__ = ("bound_s", "data", "done_s", "is_shaken", "number", "sock")

    def __init__(self, number: int) -> None:
        self.number = number
        self.bound_s = BACKOFF_BASE_S
        self.done_s = 0.0
        self.data = b""
        self.is_shaken = False
        self.sock: socket.socket | None = None


class Crowd:
    """All clients. port: of the node."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._positions: list[str] = []  # by the channel's number
        self._selector = selectors.DefaultSelector()
        self._open: list[socket.socket] = []  # of clients that have recovered: they stay
        self._later: list[tuple[float, int, Client]] = []
        self._ends: Counter[str] = Counter()
        self._handshake = (
            f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n"
        ).encode()

    def miss(self) -> None:
        """Publish what the clients will have missed, and note the positions before it."""
        with socket.create_connection(("127.0.0.1", self._port), 10) as sock:
            sock.sendall(self._handshake)
            unread = b""
            while HEAD_END not in unread:
                unread += sock.recv(READ_BYTES)
            unread = unread.partition(HEAD_END)[2]

            def call(command: str, **params: object) -> Any:
                nonlocal unread
                sock.sendall(request(command, **params))
                while True:
                    found = whole_message(unread)
                    if found is None:
                        unread += sock.recv(READ_BYTES)
                        continue
                    text, unread = found
                    message = json.loads(text)["message"]
                    if message["type"] == "response":
                        return message["data"]

            for number in range(CHANNELS):
                call("publish", channel=channel(number), message=payload())
                self._positions.append(call("subscribe", channel=channel(number), recover=True)["position"])
                call("unsubscribe", channel=channel(number))
            for number in range(CHANNELS * MISSED):
                call("publish", channel=channel(number), message=payload())
        answer(published=CHANNELS * MISSED)

    def come_back(self, clients: int, timeout_ms: int) -> None:
        """Connect all, and answer when all have recovered."""
        self._ends.clear()
        begun_s = time.monotonic()
        end_s = begun_s + timeout_ms / 1000
        crowd = [Client(number) for number in range(clients)]
        for client in crowd:
            self._connect(client)
        took_s = time.monotonic() - begun_s
        while (now_s := time.monotonic()) < end_s and self._ends["recovered"] < clients:
            due_s = self._later[0][0] if self._later else end_s
            for key, _ in self._selector.select(max(0.0, min(due_s, end_s) - now_s)):
                self._advance(key.data)
            now_s = time.monotonic()
            while self._later and self._later[0][0] <= now_s:
                self._connect(heappop(self._later)[2])
        times_s = sorted(client.done_s - begun_s for client in crowd if client.done_s) or [0.0]
        answer(
            clients=clients, connect_s=took_s, p50_ms=_part(times_s, 0.5), p99_ms=_part(times_s, 0.99),
            max_ms=_part(times_s, 1.0), **{name: self._ends[name] for name in ("recovered", *FAILURES)},
        )  # fmt: skip

    def _connect(self, client: Client) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((f"127.0.0.{2 + client.number % ADDRESSES}", 0))
        sock.connect_ex(("127.0.0.1", self._port))
        client.sock, client.data, client.is_shaken = sock, b"", False
        self._selector.register(sock, selectors.EVENT_WRITE, client)

    def _advance(self, client: Client) -> None:
        """Send or read what is next."""
        sock = client.sock
        assert sock is not None
        try:
            if self._selector.get_key(sock).events == selectors.EVENT_WRITE:  # it is connected
                sock.send(self._handshake)
                self._selector.modify(sock, selectors.EVENT_READ, client)
                return
            data = sock.recv(READ_BYTES)
        except OSError:
            data = b""
        client.data += data
        if not data:
            self._fail(client, "closed")
        elif not client.is_shaken:
            self._enter(client, sock)
        else:
            self._recover(client, sock)

    def _enter(self, client: Client, sock: socket.socket) -> None:
        if HEAD_END not in client.data:
            return
        if not client.data.startswith(b"HTTP/1.1 101 "):
            found = _RETRY_AFTER.search(client.data)
            self._fail(client, "refused", float(found[1]) if found else 0.0)
            return
        client.is_shaken, client.data = True, client.data.partition(HEAD_END)[2]
        at = client.number % CHANNELS
        sock.send(request("subscribe", channel=channel(at), recover=self._positions[at]))

    def _recover(self, client: Client, sock: socket.socket) -> None:
        found = whole_message(client.data)
        if found is None:
            return
        if found[0].count(b'"offset"') != MISSED:
            self._fail(client, "not_recovered")
            return
        client.done_s = time.monotonic()
        self._ends["recovered"] += 1
        self._selector.unregister(sock)
        self._open.append(sock)

    def _fail(self, client: Client, how: str, wait_s: float = 0.0) -> None:
        """Count a failed attempt, and try again later."""
        sock = client.sock
        assert sock is not None
        self._ends[how] += 1
        self._selector.unregister(sock)
        sock.close()
        due_s = time.monotonic() + wait_s + random.uniform(0.0, client.bound_s)
        client.bound_s = min(BACKOFF_MAX_S, 2 * client.bound_s)
        heappush(self._later, (due_s, client.number, client))


def _part(times_s: list[float], part: float) -> float:
    return times_s[min(len(times_s) - 1, int(part * len(times_s)))] * 1e3


def main() -> None:
    crowd = Crowd(int(sys.argv[1]))
    handlers: dict[str, Callable[..., None]] = {"miss": crowd.miss, "return": crowd.come_back}
    for line in sys.stdin:
        name, *words = line.split()
        handlers[name](*map(int, words))


if __name__ == "__main__":
    main()
