"""Binding: which requests a session accepts. Knowing its id is not enough: ids are in URLs, and others may choose them.

Rules:
- A request must have the credential of the request that opened the session. A digest is compared of everything that
  authentication uses: the token or, if a hook identifies clients, the address and every header that may identify one.
- A different digest proves nothing: a page may have received another cookie meanwhile. Then the client is authenticated
  again (`Who.is_known`); the same identity, or again none, means the same client.
- A request must come from the origin that opened the session. A request without an origin is accepted: a program
  could send any, and among browsers only pages of the gateway's own host may omit it (`page_check.py`).
- The session's node decides, also for a request that reached another node. Only digests and identities are sent.
"""

import hashlib
import hmac
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from aiohttp import web

from snorky.gateway.http.serving.page_check import origin_of
from snorky.gateway.http.websocket.credentials import token_of

__all__ = ["VARYING_QUERY", "Binding", "Verdict", "Who", "who_asks"]

Verdict = Literal["admitted", "unknown", "credential", "origin"]  # unknown: authenticate, then judge again

CREDENTIALS_MAX: Final = 8  # digests known to belong to a session's client
# Headers that vary between requests of one client and do not identify it. All other headers count.
_VARYING: Final = frozenset(
    "cache-control connection dnt host origin pragma priority referer te transfer-encoding upgrade "
    "upgrade-insecure-requests user-agent via forwarded x-forwarded-for x-forwarded-host x-forwarded-port "
    "x-forwarded-proto x-real-ip x-request-id x-correlation-id x-requested-with traceparent tracestate "
    "x-amzn-trace-id cf-ray x-cloud-trace-context".split()
)
_VARYING_BEGINNINGS: Final = ("accept", "content-", "if-", "sec-fetch-", "sec-ch-", "x-b3-")
VARYING_QUERY: Final = frozenset(("t", "c", "callback"))  # of sockjs-client


@dataclass(frozen=True, slots=True)
class Who:
    """The sender of a request. credential: a digest. origin: "" = not sent. identity: None = none, if is_known."""

    credential: str
    origin: str
    identity: str | None = None
    is_known: bool = False

    def known_as(self, identity: str | None) -> "Who":
        """Return a copy with the identity."""
        return replace(self, identity=identity, is_known=True)

    def words(self) -> list[Any]:
        """Serialize for another node."""
        return [self.credential, self.origin, *([self.identity] if self.is_known else [])]

    @classmethod
    def read(cls, words: Sequence[Any]) -> "Who":
        """Parse the result of `words`."""
        credential, origin, *identity = words
        return cls(credential, origin, identity[0] if identity else None, bool(identity))


class Binding:
    """The binding of one session. opener: the request that opened it, with a known identity."""

    def __init__(self, opener: Who) -> None:
        self._opener = opener
        self._credentials: deque[str] = deque([opener.credential], maxlen=CREDENTIALS_MAX)

    def judge(self, who: Who) -> Verdict:
        """Return whether a request comes from the session's client."""
        if who.origin and self._opener.origin and who.origin != self._opener.origin:
            return "origin"
        if any(hmac.compare_digest(who.credential, each) for each in self._credentials):
            return "admitted"
        if not who.is_known:
            return "unknown"
        if who.identity != self._opener.identity:
            return "credential"
        self._credentials.append(who.credential)
        return "admitted"


def who_asks(
    request: web.Request,
    session_id: str,
    ip: str,
    *,
    takes_tokens: bool,
    has_hook: bool,
    asks_backend: bool = False,
    varying_query: Collection[str] = VARYING_QUERY,
) -> Who:
    """Read the sender of a request for a session, from headers only. Raises HandshakeRefused: it has two tokens.

    asks_backend: the backend may identify a client by its address. varying_query: parameters of the query that vary
    between requests of one client and do not identify it.
    """
    token = token_of(request.headers) if takes_tokens else None
    if token is not None:
        parts = [token]
    elif has_hook:
        parts = [ip, *_told_to_hook(request, varying_query)]
    elif asks_backend:
        parts = [ip]
    else:
        parts = []
    # the id is a salt, so that the digests of one client differ between sessions
    digest = hashlib.blake2b(session_id.encode(), digest_size=20)
    for each in parts:
        data = each.encode("utf-8", "surrogateescape")
        digest.update(b"%d:%b" % (len(data), data))
    return Who(digest.hexdigest(), origin_of(request))


def _told_to_hook(request: web.Request, varying_query: Collection[str]) -> list[str]:
    headers = [(name.lower(), value) for name, value in request.headers.items()]
    parts = [
        f"{name}:{value}"
        for name, value in headers
        if name not in _VARYING and not name.startswith(_VARYING_BEGINNINGS)
    ]
    if request.query_string:
        parts += [f"?{name}={value}" for name, value in request.query.items() if name not in varying_query]
    return sorted(parts)
