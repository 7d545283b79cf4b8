"""Steps of a ScriptedServer that speak the Redis protocol: read commands, reply, stay silent or close."""

import struct
from collections.abc import Callable, Sequence

from scripted_server import Peer, ScriptedServer, Step

__all__ = ["array", "commands", "error", "redis_url", "replies", "reset_unread", "take", "text"]


def redis_url(server: ScriptedServer) -> str:
    """Return the URL of the scripted Redis."""
    return f"redis://127.0.0.1:{server.port}/0"


def commands(server: ScriptedServer) -> list[list[str]]:
    """Return all commands that were received, over all connections."""
    return [part.decode().split("\x00") for part in server.requests]


def text(value: str) -> bytes:
    """Encode a bulk string."""
    return b"$%d\r\n%s\r\n" % (len(value.encode()), value.encode())


def array(*parts: bytes) -> bytes:
    """Encode a list of encoded values."""
    return b"*%d\r\n" % len(parts) + b"".join(parts)


def error(value: str) -> bytes:
    """Encode an error."""
    return b"-" + value.encode() + b"\r\n"


def _line(peer: Peer) -> bytes:
    while b"\r\n" not in peer.buffer:
        part = peer.sock.recv(65536)
        if not part:
            raise ConnectionError("gone")
        peer.buffer += part
    line, _, peer.buffer = peer.buffer.partition(b"\r\n")
    return line


def _command(peer: Peer) -> list[bytes]:
    words = []
    for _ in range(int(_line(peer)[1:])):
        length = int(_line(peer)[1:])
        while len(peer.buffer) < length + 2:
            peer.buffer += peer.sock.recv(65536)
        words.append(peer.buffer[:length])
        peer.buffer = peer.buffer[length + 2 :]
    return words


def take(count: int = 1) -> Step:
    """Read commands and do not reply."""

    def step(peer: Peer) -> None:
        for _ in range(count):
            peer.server.requests.append(b"\x00".join(_command(peer)))

    return step


def replies(*answers: bytes) -> Step:
    """Read commands and reply to them, one after the other."""

    def step(peer: Peer) -> None:
        for answer in answers:
            take()(peer)
            peer.sock.sendall(answer)

    return step


def answer_each(answer: Callable[[Sequence[bytes]], bytes]) -> Step:
    """Reply to every command until the client disconnects."""

    def step(peer: Peer) -> None:
        while True:
            words = _command(peer)
            peer.server.requests.append(b"\x00".join(words))
            peer.sock.sendall(answer(words))

    return step


def reset_unread(peer: Peer) -> None:
    """Cut the connection with a reset."""
    import socket

    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.sock.close()
