"""receiver.c for a machine without a compiler: the same options, commands and answers, without `flood`.

It costs more than a server's send(), so figures of latency and of sustained rates then describe it more than the
gateway; CPU per delivery is still that of the server.
"""

import argparse
import json
import os
import re
import resource
import selectors
import socket
import sys
import time

__all__: list[str] = []

_HEAD = re.compile(rb'"t":(\d+)')


class Connection:
    """One client: its socket, the bytes of an unfinished frame, whether it is sampled."""

    __slots__ = ("is_ready", "is_sampled", "is_shaken", "last_ns", "replies", "sock", "unread")

    def __init__(self, sock: socket.socket, *, is_shaken: bool, is_sampled: bool) -> None:
        self.sock, self.is_shaken, self.is_sampled = sock, is_shaken, is_sampled
        self.is_ready = False
        self.replies = 0
        self.unread = b""
        self.last_ns = 0


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame, masked with zeros."""
    size = len(payload)
    head = bytes((0x80 | opcode, 0x80 | size)) if size < 126 else bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2)
    return head + bytes(4) + payload


class Receiver:
    """The connections and their counts since the mark."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.selector = selectors.DefaultSelector()
        self.ready = 0
        self.mark()

    def mark(self) -> None:
        self.messages = self.bytes = self.recvs = self.closed = self.out_of_order = 0
        self.latencies_ms: list[float] = []

    def connect_all(self) -> None:
        for number in range(self.options.connections):
            source = (f"127.0.0.{1 + number % self.options.sources}", 0)
            sock = socket.create_connection(("127.0.0.1", self.options.port), 30, source)
            is_sampled = bool(self.options.sample) and number % self.options.sample == 0
            connection = Connection(sock, is_shaken=self.options.raw, is_sampled=is_sampled)
            if self.options.raw:
                self._become_ready(connection)
            else:
                sock.sendall(
                    f"GET {self.options.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.options.port}\r\nUpgrade: websocket\r\n"
                    "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                    "Sec-WebSocket-Version: 13\r\n\r\n".encode()
                )
                while not connection.is_shaken:
                    self._read(connection)
                if self.options.send_hex is not None:
                    sock.sendall(masked(2, bytes.fromhex(self.options.send_hex)))
                elif self.options.send is not None:
                    sock.sendall(masked(1, self.options.send.replace("%d", str(number)).encode()))
                else:
                    self._become_ready(connection)
            sock.setblocking(False)
            self.selector.register(sock, selectors.EVENT_READ, connection)
            self.turn(0)
        while self.ready < self.options.connections:
            self.turn(1)

    def _become_ready(self, connection: Connection) -> None:
        connection.is_ready = True
        self.ready += 1

    def turn(self, timeout_s: float) -> None:
        for key, _ in self.selector.select(timeout_s):
            if key.data is not None:
                self._read(key.data)

    def next_command(self) -> bytes:
        """Read until a command comes; empty: stdin has ended. One at a time: the harness waits for the answer."""
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    return os.read(sys.stdin.fileno(), 4096)
                self._read(key.data)

    def _read(self, connection: Connection) -> None:
        try:
            chunk = connection.sock.recv(1 << 18)
        except BlockingIOError:
            return
        if not chunk:
            self.closed += 1
            self.selector.unregister(connection.sock)
            return
        self.recvs += 1
        self.bytes += len(chunk)
        data = connection.unread + chunk
        if not connection.is_shaken:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end or not head.startswith(b"HTTP/1.1 101"):
                raise SystemExit(f"handshake refused: {head!r}")
            connection.is_shaken = True
        connection.unread = self._walk(connection, data)

    def _walk(self, connection: Connection, data: bytes) -> bytes:
        at, now_ns = 0, time.monotonic_ns()
        while len(data) - at >= 2:
            size, start = data[at + 1] & 0x7F, at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4]), at + 4
            elif size == 127:
                size, start = int.from_bytes(data[at + 2 : at + 10]), at + 10
            if start + size > len(data):
                break
            opcode = data[at] & 0x0F
            at = start + size
            if opcode == 9:
                connection.sock.sendall(masked(10, data[start:at]))
            elif opcode <= 2 and size <= 2:
                pass  # a ping of Centrifuge's protocol
            elif opcode <= 2 and not connection.is_ready:
                connection.replies += 1
                if connection.replies == self.options.replies:
                    self._become_ready(connection)
            elif opcode <= 2:
                self.messages += 1
                if connection.is_sampled and (found := _HEAD.search(data, start, at)):
                    sent_ns = int(found[1])
                    self.latencies_ms.append((now_ns - sent_ns) / 1e6)
                    self.out_of_order += sent_ns < connection.last_ns
                    connection.last_ns = sent_ns
        return data[at:]

    def report(self, event: str, since: float) -> None:
        latencies = sorted(self.latencies_ms)
        last = len(latencies) - 1
        percentile = {n: latencies[round(share * last)] if latencies else -1.0 for n, share in _SHARES.items()}
        counts = {
            "elapsed_s": time.monotonic() - since, "connections": self.ready, "messages": self.messages,
            "bytes": self.bytes, "recvs": self.recvs, "closed": self.closed, "out_of_order": self.out_of_order,
            "samples": len(latencies), **percentile,
        }  # fmt: skip
        sys.stdout.write(json.dumps({"event": event, **counts}) + "\n")
        sys.stdout.flush()

    def wait(self, messages: int, timeout_s: float) -> None:
        since = time.monotonic()
        while self.messages < messages and time.monotonic() - since < timeout_s:
            self.turn(0.02)
        self.report("waited", since)


_SHARES = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("port", "connections", "sample", "sources"):
        parser.add_argument(f"--{option}", type=int)
    parser.add_argument("--path")
    parser.add_argument("--send")
    parser.add_argument("--send-hex")
    parser.add_argument("--replies", type=int, default=1)
    parser.add_argument("--raw", action="store_true")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    receiver, since = Receiver(parser.parse_args()), time.monotonic()
    receiver.connect_all()
    receiver.report("ready", since)
    receiver.selector.register(sys.stdin, selectors.EVENT_READ, None)
    while command := receiver.next_command():
        name, *words = command.split()
        if name == b"mark":
            receiver.mark()
            receiver.report("marked", time.monotonic())
        elif name == b"wait":
            receiver.wait(int(words[0]), int(words[1]) / 1000)
        else:
            raise SystemExit(f"unknown command: {command!r}")


if __name__ == "__main__":
    main()
