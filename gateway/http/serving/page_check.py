"""Which browser pages may request a session, beyond the check of the Origin header.

Rules:
- A session's URL is not a page: navigation to it is refused, because a link could lead a victim's
  browser, with its cookie, to a session that an attacker has chosen. Two transports of sockjs-client load a URL
  into an iframe of an allowed page.
- Browsers send no Origin with same-origin GET requests, scripts or iframes. There the Referer must have an allowed
  origin. Without a Referer, a request that only browsers send is refused, unless it is marked as same-origin.
"""

from collections.abc import Collection
from typing import Final

from aiohttp import web

from snorky.gateway.http.sockjs.binding import origin_of
from snorky.gateway.http.websocket.handshake import HandshakeRefused, check_origin

__all__ = ["check_navigation", "check_referer", "check_stated"]

_PAGES: Final = frozenset(("document", "embed", "fencedframe", "frame", "iframe", "object"))
_REFUSED: Final = "This address is not a page: connect with sockjs-client, from a page of an allowed origin"


def check_navigation(request: web.Request, *, may_be_framed: bool) -> None:
    """Refuse a browser's navigation. may_be_framed: navigation in an iframe is allowed. Raises HandshakeRefused."""
    mode, to = request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest")
    if mode is None and to is None:  # an older browser: judge by whether it asks for HTML
        is_navigation = not may_be_framed and _wants_page(request)
    else:
        is_navigation = (mode == "navigate" or to in _PAGES) and not (may_be_framed and to == "iframe")
    if is_navigation:
        raise HandshakeRefused(403, "navigation", _REFUSED)


def check_stated(request: web.Request, allowed_origins: Collection[str], *, is_for_browsers: bool) -> None:
    """Refuse pages that are not allowed, if there is no Origin header. Raises HandshakeRefused.

    is_for_browsers: only browsers send such a request, for a script or an iframe.
    """
    if "Origin" in request.headers:
        return  # checked already
    if "Referer" in request.headers:
        check_referer(request, allowed_origins)
    elif (is_for_browsers or _wants_page(request)) and request.headers.get("Sec-Fetch-Site") != "same-origin":
        raise HandshakeRefused(403, "origin", "A Referer of an allowed origin is needed")


def check_referer(request: web.Request, allowed_origins: Collection[str]) -> None:
    """Refuse a request whose page is not of an allowed origin. Raises HandshakeRefused."""
    if not origin_of(request):
        raise HandshakeRefused(403, "origin", "A Referer of an allowed origin is needed")
    check_origin(origin_of(request), request.headers.get("Host", ""), allowed_origins)


def _wants_page(request: web.Request) -> bool:
    return "text/html" in request.headers.get("Accept", "")
