"""One keep-alive HTTP connection to a gateway, with one deadline for a whole exchange. Not thread-safe.

Rules:
- A request is written by one sendall. If that fails, the gateway did not get the whole request and did not execute it:
  the error is NotSent. After that, every failure is NoReply or InvalidReply: the gateway may have executed it.
- An idle connection that has something to read is stale: the server closed it, or a reply came without a request.
  `is_stale` checks this without sending anything.
- http.client parses the responses. It reads from a stream whose every read is limited by the remaining time until the
  deadline, so a server that sends one byte per second cannot exceed it.
"""

import http.client
import io
import os
import selectors
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Endpoint", "InvalidReply", "NoReply", "NotSent", "Response", "Wire"]

REPLY_MAX_BYTES: Final = 64 * 1024 * 1024  # a batch of 1,000 replies of the default maximum size
_CHUNK_BYTES: Final = 65_536


class NotSent(Exception):
    """The request was not written completely."""


class NoReply(Exception):
    """The request was written, but its response did not arrive."""


class InvalidReply(Exception):
    """The response is not HTTP, or larger than any of a gateway."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The server's address. tls: None = plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None


@dataclass(frozen=True, slots=True)
class Response:
    """One response with its complete body."""

    status: int
    reason: str
    retry_after: str
    body: bytes


class _Raw(io.RawIOBase):
    """Reads from a socket until a deadline (of time.monotonic)."""

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        self._sock = sock
        self._deadline_s = deadline_s
        self.is_stopped = False  # if True, reads return end of file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.is_stopped:
            return 0
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left_s)
        return self._sock.recv_into(buffer)


class _Stream(io.BufferedReader):
    """The stream from which http.client reads a response. has_rest: more data followed the response."""

    def __init__(self, raw: _Raw) -> None:
        super().__init__(raw, _CHUNK_BYTES)
        self._own_raw = raw
        self.has_rest = False

    def close(self) -> None:
        if not self.closed:
            self._own_raw.is_stopped = True  # so that peek looks at the buffer only and does not wait
            self.has_rest = bool(self.peek(1))
        super().close()


class _Source:
    """The part of a socket that http.client uses: a stream to read from."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def makefile(self, *_args: object, **_kwargs: object) -> _Stream:
        return self._stream


class Wire:
    """A connection. idle_since_s: time.monotonic() of its last use."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pid = os.getpid()
        self.is_reusable = True
        self.idle_since_s = time.monotonic()

    @classmethod
    def connect(cls, endpoint: Endpoint, deadline_s: float) -> "Wire":
        """Open a connection. Raises NotSent: no server there, its certificate is not valid, or not in time."""
        try:
            sock = socket.create_connection((endpoint.host, endpoint.port), timeout=_left_s(deadline_s))
        except OSError as error:
            raise NotSent(str(error)) from error
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if endpoint.tls is not None:
                sock.settimeout(_left_s(deadline_s))
                sock = endpoint.tls.wrap_socket(sock, server_hostname=endpoint.host)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):  # ssl.SSLError is one
                raise NotSent(str(error)) from error
            raise
        return cls(sock)

    @property
    def is_stale(self) -> bool:
        """True if it cannot be reused: closed by the server, unexpected data, or inherited from another process."""
        if self._pid != os.getpid():  # after a fork, two processes would write to one connection
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            return bool(selector.select(0))

    def exchange(self, request: bytes, deadline_s: float) -> Response:
        """Send a request and read its response. Raises NotSent, NoReply, InvalidReply; then the wire is closed."""
        try:
            try:
                self._sock.settimeout(_left_s(deadline_s))
                self._sock.sendall(request)
            except OSError as error:
                response = self._refusal(deadline_s, error)
            else:
                response = self._read(deadline_s)
        except BaseException:  # also KeyboardInterrupt: the next user would read this response as its own
            self.close()
            raise
        self.idle_since_s = time.monotonic()
        return response

    def _refusal(self, deadline_s: float, error: OSError) -> Response:
        """Read the response to a request that was not written completely ("too large", say). Raises NotSent."""
        try:
            response = self._read(deadline_s)
        except (NoReply, InvalidReply):
            raise NotSent(str(error)) from error
        self.is_reusable = False
        return response

    def _read(self, deadline_s: float) -> Response:
        stream = _Stream(_Raw(self._sock, deadline_s))
        answer = http.client.HTTPResponse(_Source(stream), method="POST")  # type: ignore[arg-type]  # all that it uses
        try:
            answer.begin()
            if answer.status < 200:
                raise InvalidReply("the answer is an unexpected interim response")
            expected = answer.length
            body = bytearray()
            while part := answer.read(_CHUNK_BYTES):
                body += part
                if len(body) > REPLY_MAX_BYTES:
                    raise InvalidReply(f"the answer is larger than {REPLY_MAX_BYTES} bytes")
            if expected is not None and len(body) != expected:
                raise NoReply("the connection ended within the answer")
        except http.client.RemoteDisconnected as error:
            raise NoReply("the connection ended without an answer") from error
        except http.client.IncompleteRead as error:
            raise NoReply("the connection ended within the answer") from error
        except (http.client.HTTPException, ValueError) as error:
            raise InvalidReply(f"the answer is not HTTP: {type(error).__name__}") from error
        except OSError as error:
            raise NoReply(str(error)) from error
        finally:
            will_close = answer.will_close
            answer.close()
            stream.close()
        self.is_reusable = not will_close and not stream.has_rest
        retry_after = answer.getheader("Retry-After") or ""
        return Response(answer.status, answer.reason, retry_after, bytes(body))

    def close(self) -> None:
        """Close the connection."""
        self.is_reusable = False
        self._sock.close()


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s
