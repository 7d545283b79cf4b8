"""SnorkyHTTPTransport: sends messages to a gateway's /backend over keep-alive connections.

Rules:
- A request that may have been executed is not sent again unless the caller sets `retry`. If a reused connection turns
  out to be closed before the request was written completely, the request is sent again once, on a new connection.
- timeout_s covers everything: connecting, sending, waiting and retrying. Only name resolution cannot be limited.
- Threads may share a transport; each exchange has its own connection. A forked process does not use the parent's
  connections.
"""

import json as _json
import random
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from snorky.client.errors import TransportError
from snorky.client.http.wire import Endpoint, InvalidReply, NoReply, NotSent, Response, Wire

__all__ = ["JSON", "JsonModule", "SnorkyHTTPTransport", "Transport"]

IDLE_MAX: Final = 8  # idle connections kept for reuse
IDLE_MAX_S: Final = 4.0  # some servers close idle connections after 5 s
ATTEMPTS_MAX: Final = 4  # with `retry`
_BACKOFF_FIRST_S: Final = 0.1
_TRY_AGAIN: Final = frozenset({502, 503, 504})  # from a proxy or a draining node
_TEXT_MAX: Final = 200


class JsonModule(Protocol):
    """Converts values to JSON and back, like the module `json`."""

    def dumps(self, value: Any, /) -> str: ...

    def loads(self, text: str, /) -> Any: ...


class _StrictJson:
    """The default: rejects NaN and infinities, which a gateway does not accept."""

    def dumps(self, value: Any, /) -> str:
        return _json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def loads(self, text: str, /) -> Any:
        return _json.loads(text)


JSON: Final[JsonModule] = _StrictJson()


class Transport(Protocol):
    """Carries the messages of a SnorkyBackend."""

    def send(self, message: Any, *, json: JsonModule = JSON, retry: bool = False) -> Any:
        """Send an envelope, or a list of them; return the response.

        Raises TransportError; ValueError, TypeError: the message is not JSON, nothing was sent.
        """
        ...


class SnorkyHTTPTransport:
    """Sends messages to a gateway by HTTP.

    url: the gateway's /backend. key: the gateway's private.api_key; None = it has none. timeout_s: for one `send`, with
    all its attempts. ssl_context: for https; by default the system's certificate authorities are trusted. Raises
    ValueError: url, key or timeout_s is not valid.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout_s: float = 10.0,
        *,
        ssl_context: ssl.SSLContext | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ValueError("url: write http://HOST:PORT/backend or https://..., without a user")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError("key: only printable ASCII goes into a header")
        if timeout_s <= 0:
            raise ValueError("timeout_s: more than 0")
        self.url = url
        self.timeout_s = timeout_s
        tls = (ssl_context or ssl.create_default_context()) if parts.scheme == "https" else None
        self._endpoint = Endpoint(parts.hostname, parts.port or (443 if tls else 80), tls)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not (target.isascii() and target.isprintable()) or " " in target:
            raise ValueError("url: its path has characters that must be percent-encoded")
        head = [
            f"POST {target} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Content-Type: application/json",
            "Accept: application/json",
            "User-Agent: snorky-client",
        ]
        if key is not None:
            head.append(f"X-Backend-Key: {key}")
        self._head = "\r\n".join(head)
        self._sleep = sleep
        self._idle: deque[Wire] = deque()  # append and pop are atomic; the last used is reused first

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"  # never the key

    def __enter__(self) -> "SnorkyHTTPTransport":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def send(self, message: Any, *, json: JsonModule = JSON, retry: bool = False) -> Any:
        """Send an envelope, or a list of them; return the decoded response.

        retry: send again after failures, although the message may then be executed more than once. Raises
        TransportError; ValueError, TypeError: the message is not JSON, nothing was sent.
        """
        body = json.dumps(message).encode()
        request = f"{self._head}\r\nContent-Length: {len(body)}\r\n\r\n".encode("ascii") + body
        deadline_s = time.monotonic() + self.timeout_s
        attempt, may_have_happened = 1, False
        while True:
            try:
                return _value(self._exchange(request, deadline_s), json)
            except TransportError as error:
                may_have_happened = error.may_have_happened = may_have_happened or error.may_have_happened
                again = error.code in ("unreachable", "no_reply") or error.status in _TRY_AGAIN
                wait_s = random.uniform(0, _BACKOFF_FIRST_S * 2**attempt)  # noqa: S311 - spreads attempts, no secret
                wait_s = max(wait_s, (error.retry_after_ms or 0) / 1000)
                if not retry or not again or attempt == ATTEMPTS_MAX or time.monotonic() + wait_s >= deadline_s:
                    raise
                self._sleep(wait_s)
                if time.monotonic() >= deadline_s:
                    raise
            attempt += 1

    def close(self) -> None:
        """Close the idle connections. The transport can still be used; it opens new ones."""
        while self._idle:
            self._idle.pop().close()

    def _exchange(self, request: bytes, deadline_s: float) -> Response:
        wire = self._kept()
        try:
            if wire is not None:
                try:
                    return self._over(wire, request, deadline_s)
                except NotSent:
                    pass  # it was closed after the check in _kept: use a new one
            return self._over(Wire.connect(self._endpoint, deadline_s), request, deadline_s)
        except (NotSent, TimeoutError) as error:  # TimeoutError: before anything was sent
            text = f"The gateway cannot be reached: {error}"
            raise TransportError(text, "unreachable", may_have_happened=False) from error
        except NoReply as error:
            raise TransportError(f"No reply: {error}", "no_reply", may_have_happened=True) from error
        except InvalidReply as error:
            raise TransportError(f"Invalid reply: {error}", "invalid_reply", may_have_happened=True) from error

    def _over(self, wire: Wire, request: bytes, deadline_s: float) -> Response:
        response = wire.exchange(request, deadline_s)
        if wire.is_reusable and len(self._idle) < IDLE_MAX:
            self._idle.append(wire)
        else:
            wire.close()
        return response

    def _kept(self) -> Wire | None:
        """Take an idle connection that is still open; None if there is none."""
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                return None
            if time.monotonic() - wire.idle_since_s < IDLE_MAX_S and not wire.is_stale:
                return wire
            wire.close()


def _value(response: Response, json: JsonModule) -> Any:
    """Return the JSON value of a response. Raises TransportError: the status is not 200, or the body is not JSON."""
    try:
        value = json.loads(response.body.decode())
    except (ValueError, RecursionError) as error:
        if response.status == 200:
            text = "Invalid reply: not JSON"
            raise TransportError(text, "invalid_reply", may_have_happened=True, status=200) from error
        value = None
    if response.status == 200:
        return value
    raise _status_error(response, value)


def _status_error(response: Response, value: Any) -> TransportError:
    message = value.get("message") if isinstance(value, dict) else None
    told = message if isinstance(message, dict) and isinstance(message.get("message"), str) else {}
    text = told.get("message", response.reason)[:_TEXT_MAX]
    code = told.get("code")
    if response.status == 401:
        code = "unauthorized"
    elif not isinstance(code, str):
        code = f"http_{response.status}"
    retry_after_ms = told.get("retryAfterMs")
    if not is_count(retry_after_ms):
        seconds = response.retry_after
        retry_after_ms = int(seconds) * 1000 if seconds.isascii() and seconds.isdigit() and len(seconds) < 7 else None
    return TransportError(
        f"HTTP {response.status}: {text}",
        code,
        may_have_happened=response.status >= 500,  # below 500 the gateway did not execute it
        status=response.status,
        retry_after_ms=retry_after_ms,
    )


def is_count(value: object) -> bool:
    """True for an integer of at least 0; a bool is not one."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
