"""One keep-alive connection to a gateway, with one deadline for a whole exchange. Not thread-safe: one user at a time.

Rules:
- A request goes out as one sendall. If that fails, the gateway lacks the end of it and cannot have acted: the
  error is NotSent. Once it went out whole, every failure is NoReply or InvalidReply: the gateway may have acted.
- A connection on which something waits to be read before anything was asked is stale: it was closed meanwhile, or
  its answers are out of step. `is_stale` finds that out without sending anything.
- http.client reads the answers; it is given a stream whose every read has what is left of the deadline, so that a
  server that sends a byte a second is not waited for longer than one that sends none.
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

REPLY_MAX_BYTES: Final = 64 * 1024 * 1024  # a batch of 1,000 replies of the largest size that is the default
_CHUNK_BYTES: Final = 65_536


class NotSent(Exception):
    """The request did not go out whole."""


class NoReply(Exception):
    """The request went out, and its answer did not come."""


class InvalidReply(Exception):
    """An answer came that is not HTTP, or is larger than any of a gateway's."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go. tls: None = plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None


@dataclass(frozen=True, slots=True)
class Response:
    """One answer, its body read to the end."""

    status: int
    reason: str
    retry_after: str
    body: bytes


class _Raw(io.RawIOBase):
    """A socket's bytes until a deadline (of time.monotonic)."""

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        self._sock = sock
        self._deadline_s = deadline_s
        self.is_stopped = False  # then it reads as at its end

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
    """What http.client reads an answer from. has_rest: more was there than the answer."""

    def __init__(self, raw: _Raw) -> None:
        super().__init__(raw, _CHUNK_BYTES)
        self._own_raw = raw
        self.has_rest = False

    def close(self) -> None:
        if not self.closed:
            self._own_raw.is_stopped = True  # look at what is buffered, and wait for nothing
            self.has_rest = bool(self.peek(1))
        super().close()


class _Source:
    """All that http.client wants of a socket: a stream to read from."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def makefile(self, *_args: object, **_kwargs: object) -> _Stream:
        return self._stream


class Wire:
    """A connection. idle_since_s: time.monotonic when it was used last."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pid = os.getpid()
        self.is_reusable = True
        self.idle_since_s = time.monotonic()

    @classmethod
    def connect(cls, endpoint: Endpoint, deadline_s: float) -> "Wire":
        """Open one. Raises NotSent: nobody there, its certificate is not good, or not until the deadline."""
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
        """True if it cannot be used again: its peer closed it or said what nobody asked, or it is another process's."""
        if self._pid != os.getpid():  # inherited by a fork: two would speak on one connection
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            return bool(selector.select(0))

    def exchange(self, request: bytes, deadline_s: float) -> Response:
        """Send a request and read its answer. Raises NotSent, NoReply, InvalidReply; then the wire is closed."""
        try:
            try:
                self._sock.settimeout(_left_s(deadline_s))
                self._sock.sendall(request)
            except OSError as error:
                response = self._refusal(deadline_s, error)
            else:
                response = self._read(deadline_s)
        except BaseException:  # also KeyboardInterrupt: the next user would read this answer as its own
            self.close()
            raise
        self.idle_since_s = time.monotonic()
        return response

    def _refusal(self, deadline_s: float, error: OSError) -> Response:
        """Read what was answered to a request that was not taken whole: "too large", for example. Raises NotSent."""
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
                raise InvalidReply("the answer is an interim one, which nobody asked for")
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
        """Let go of the connection."""
        self.is_reusable = False
        self._sock.close()


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s
