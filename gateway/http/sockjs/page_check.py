"""Which pages of browsers may ask for a session, beyond what an Origin tells.

Rules:
- A session's address is no page: what a browser asks for by navigation is refused, for a link may lead a victim's
  browser, with its cookie, to a session that an attacker has chosen. Two transports of sockjs-client load an address
  into an iframe of an allowed page.
- Browsers send no Origin with a GET of the same origin, a script or an iframe. There the Referer must be of an allowed
  origin. Without it, what only browsers ask for is refused, unless the browser says that the origin is the same.
"""

from collections.abc import Collection
from typing import Final

from aiohttp import web

from gateway.http.handshake import HandshakeRefused, check_origin
from gateway.http.sockjs.binding import origin_of

__all__ = ["check_navigation", "check_referer", "check_stated"]

_PAGES: Final = frozenset(("document", "embed", "fencedframe", "frame", "iframe", "object"))
_REFUSED: Final = "This address is no page: connect with sockjs-client, from a page of an allowed origin"


def check_navigation(request: web.Request, *, may_be_framed: bool) -> None:
    """Refuse a navigation of a browser. may_be_framed: into an iframe it may be. Raises HandshakeRefused."""
    mode, to = request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest")
    if mode is None and to is None:  # an older browser: what it navigates to shall be a page
        is_navigation = not may_be_framed and _wants_page(request)
    else:
        is_navigation = (mode == "navigate" or to in _PAGES) and not (may_be_framed and to == "iframe")
    if is_navigation:
        raise HandshakeRefused(403, "navigation", _REFUSED)


def check_stated(request: web.Request, allowed_origins: Collection[str], *, is_for_browsers: bool) -> None:
    """Refuse pages that are not allowed, where no Origin tells. Raises HandshakeRefused.

    is_for_browsers: only they ask for this, as a script or an iframe.
    """
    if "Origin" in request.headers:
        return  # looked at already
    if "Referer" in request.headers:
        check_referer(request, allowed_origins)
    elif (is_for_browsers or _wants_page(request)) and request.headers.get("Sec-Fetch-Site") != "same-origin":
        raise HandshakeRefused(403, "origin", "A Referer of an allowed origin is needed")


def check_referer(request: web.Request, allowed_origins: Collection[str]) -> None:
    """Refuse what has no Origin and is not asked for by an allowed page. Raises HandshakeRefused."""
    if not origin_of(request):
        raise HandshakeRefused(403, "origin", "A Referer of an allowed origin is needed")
    check_origin(origin_of(request), request.headers.get("Host", ""), allowed_origins)


def _wants_page(request: web.Request) -> bool:
    return "text/html" in request.headers.get("Accept", "")
