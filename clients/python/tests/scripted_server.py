"""A server whose connections follow scripts: reply, stay silent, send slowly, send wrong data or close.

    with ScriptedServer(connection(answers(reply(1))), connection(read, hang_up)) as server:
        transport = SnorkyHTTPTransport(server.url)

The first script is for the first connection, and so on. Connections beyond the scripts are closed at once and counted.
`requests` has all requests that were read, head and body, in order.
"""

import json
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Peer", "ScriptedServer", "answer", "hang_up", "http", "read", "reply", "reset", "say", "wait"]

DEADLINE_S = 30.0


class Peer:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, server: "ScriptedServer") -> None:
        self.sock = sock
        self.server = server
        self.buffer = b""

    def read_request(self) -> bytes:
        """Read one request; empty if the client disconnected."""
        while b"\r\n\r\n" not in self.buffer:
            part = self.sock.recv(65536)
            if not part:
                return b""
            self.buffer += part
        head, _, rest = self.buffer.partition(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
        while len(rest) < length:
            part = self.sock.recv(65536)
            if not part:
                return b""
            rest += part
        self.buffer = rest[length:]
        return head + b"\r\n\r\n" + rest[:length]


Step = Callable[[Peer], None]


class ScriptedServer:
    """Runs one script after the other, each in its own thread."""

    def __init__(self, *scripts: list[Step]) -> None:
        self._scripts = list(scripts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/backend"
        self.requests: list[bytes] = []
        self.connections = 0
        self.released = threading.Event()  # `wait` waits for it
        self.finished = threading.Semaphore(0)  # released at the end of each script
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._peers: list[socket.socket] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> "ScriptedServer":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.released.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(DEADLINE_S)
        for sock in self._peers:
            sock.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        if self.failures:
            raise self.failures[0]

    @property
    def bodies(self) -> list[Any]:
        """The decoded bodies of the requests."""
        return [json.loads(request.partition(b"\r\n\r\n")[2]) for request in self.requests]

    def wait_finished(self) -> None:
        """Wait until one more script has ended."""
        assert self.finished.acquire(timeout=DEADLINE_S)

    def keep(self, sock: socket.socket) -> None:
        """Close this socket at the end; it has replaced a connection's own."""
        self._peers.append(sock)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1
            if number >= len(self._scripts):
                sock.close()
                continue
            sock.settimeout(DEADLINE_S)
            self._peers.append(sock)
            thread = threading.Thread(target=self._follow, args=(sock, self._scripts[number]), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _follow(self, sock: socket.socket, script: list[Step]) -> None:
        peer = Peer(sock, self)
        try:
            for step in script:
                step(peer)
        except OSError:
            pass  # the client disconnected: the test checks the client's error
        except BaseException as error:
            self.failures.append(error)
        finally:
            self.finished.release()


def reply(data: Any) -> Any:
    """Build the envelope of a response."""
    return {"service": "echo", "message": {"type": "response", "data": data}}


def http(body: Any, status: str = "200 OK", *headers: str) -> bytes:
    """Build an HTTP response."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


def read(peer: Peer) -> None:
    """Read one request."""
    request = peer.read_request()
    if request:
        peer.server.requests.append(request)


def say(data: bytes) -> Step:
    """Send bytes unchanged."""
    return lambda peer: peer.sock.sendall(data)


def answer(body: Any, status: str = "200 OK", *headers: str) -> Step:
    """Read one request and reply to it."""

    def step(peer: Peer) -> None:
        read(peer)
        peer.sock.sendall(http(body, status, *headers))

    return step


def wait(peer: Peer) -> None:
    """Do nothing until the test continues or ends."""
    peer.server.released.wait(DEADLINE_S)


def hang_up(peer: Peer) -> None:
    """Close the connection normally."""
    peer.sock.close()


def reset(peer: Peer) -> None:
    """Close it with a reset."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.sock.close()
