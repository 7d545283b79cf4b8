"""Binding: which requests a session takes. Its id opens nothing: ids stand in URLs, and others may have chosen one.

Rules:
- A request must bring the credential of the one that opened the session. Compared is a digest of all that a login is
  read from: the token, or, where a hook says who a client is, the address and every header that may carry one.
- A digest that differs proves nothing: a page may have got another cookie meanwhile. Then it is asked again who the
  client is (`Who.is_known`), and the same identity, or again none, is the same client.
- A request must come from the origin that opened the session. One that states no origin does not differ: a program
  could state any, and of browsers only pages of the gateway's own host may leave it out (`page_check.py`).
- The node of the session decides, also for a request that came to another node. Only digests and identities travel.
"""

import hashlib
import hmac
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from aiohttp import web

from gateway.http.credentials import token_of

__all__ = ["Binding", "Verdict", "Who", "origin_of", "who_asks"]

Verdict = Literal["admitted", "unknown", "credential", "origin"]  # unknown: ask who it is, and again

CREDENTIALS_MAX: Final = 8  # digests of one session that are known to be of its client
# What differs from request to request of one client and says nothing of who it is. All other headers count.
_VARYING: Final = frozenset(
    "cache-control connection dnt host origin pragma priority referer te transfer-encoding upgrade "
    "upgrade-insecure-requests user-agent via forwarded x-forwarded-for x-forwarded-host x-forwarded-port "
    "x-forwarded-proto x-real-ip x-request-id x-correlation-id x-requested-with traceparent tracestate "
    "x-amzn-trace-id cf-ray x-cloud-trace-context".split()
)
_VARYING_BEGINNINGS: Final = ("accept", "content-", "if-", "sec-fetch-", "sec-ch-", "x-b3-")
_VARYING_QUERY: Final = frozenset(("t", "c", "callback"))


@dataclass(frozen=True, slots=True)
class Who:
    """Who makes a request. credential: a digest. origin: "" = not stated. identity: None = nobody, if is_known."""

    credential: str
    origin: str
    identity: str | None = None
    is_known: bool = False

    def known_as(self, identity: str | None) -> "Who":
        """Give the same, with who it is."""
        return replace(self, identity=identity, is_known=True)

    def words(self) -> list[Any]:
        """Say it to another node."""
        return [self.credential, self.origin, *([self.identity] if self.is_known else [])]

    @classmethod
    def read(cls, words: Sequence[Any]) -> "Who":
        """Read what `words` said."""
        credential, origin, *identity = words
        return cls(credential, origin, identity[0] if identity else None, bool(identity))


class Binding:
    """Of one session. opener: who opened it; known."""

    def __init__(self, opener: Who) -> None:
        self._opener = opener
        self._credentials: deque[str] = deque([opener.credential], maxlen=CREDENTIALS_MAX)

    def judge(self, who: Who) -> Verdict:
        """Say whether a request is the session's client's."""
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


def who_asks(request: web.Request, session_id: str, ip: str, *, takes_tokens: bool, has_hook: bool) -> Who:
    """Read who makes a request for a session, as far as headers tell. Raises HandshakeRefused: it brings two tokens."""
    token = token_of(request.headers) if takes_tokens else None
    if token is not None:
        told = [token]
    elif has_hook:
        told = [ip, *_told_to_hook(request)]
    else:
        told = []
    # the id is a salt, so that one client's digests for several sessions are not alike
    digest = hashlib.blake2b(session_id.encode(), digest_size=20)
    for each in told:
        data = each.encode("utf-8", "surrogateescape")
        digest.update(b"%d:%b" % (len(data), data))
    return Who(digest.hexdigest(), origin_of(request))


def origin_of(request: web.Request) -> str:
    """Tell which origin's page makes a request, by Origin or else Referer; "" = neither is there or can be read."""
    origin = request.headers.get("Origin")
    if origin is not None:
        return origin
    try:
        referer = urlsplit(request.headers.get("Referer", ""))
    except ValueError:
        return ""
    return f"{referer.scheme}://{referer.netloc}" if referer.netloc else ""


def _told_to_hook(request: web.Request) -> list[str]:
    headers = [(name.lower(), value) for name, value in request.headers.items()]
    told = [
        f"{name}:{value}"
        for name, value in headers
        if name not in _VARYING and not name.startswith(_VARYING_BEGINNINGS)
    ]
    if request.query_string:
        told += [f"?{name}={value}" for name, value in request.query.items() if name not in _VARYING_QUERY]
    return sorted(told)
