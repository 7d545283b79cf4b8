"""Which browser pages may request a SockJS session or a stream, and read the response.

Rules:
- An Origin header must be allowed. Without one, a cross-site request needs the Referer of an allowed origin.
- A session's URL is not a page: navigation to it is refused, because a link could lead a victim's
  browser, with its cookie, to a session that an attacker has chosen. Two transports of sockjs-client load a URL
  into an iframe of an allowed page.
- Browsers send no Origin with same-origin GET requests, scripts or iframes. There the Referer must have an allowed
  origin. Without a Referer, a request that only browsers send is refused, unless it is marked as same-origin.
"""

from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from snorky.gateway.http.websocket.handshake import HandshakeRefused, check_origin

__all__ = ["check_navigation", "check_page", "check_referer", "check_stated", "cors_headers", "origin_of"]

_PAGES: Final = frozenset(("document", "embed", "fencedframe", "frame", "iframe", "object"))
_REFUSED: Final = "This address is not a page: connect with a client library, from a page of an allowed origin"


def check_page(request: web.Request, allowed_origins: Collection[str]) -> None:
    """Refuse pages of origins that are not allowed. Raises HandshakeRefused."""
    origins = request.headers.getall("Origin", ())
    if len(origins) > 1:
        raise HandshakeRefused(400, "duplicate_header", "Origin occurs twice")
    if origins:
        check_origin(origins[0], request.headers.get("Host", ""), allowed_origins)
    elif request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and "Referer" not in request.headers:
        raise HandshakeRefused(403, "origin", "Origin missing: pages of other sites must send one")
    elif "Referer" in request.headers and request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
        check_referer(request, allowed_origins)


def cors_headers(request: web.Request) -> Mapping[str, str]:
    """Return the header fields that let an allowed page read the response, also to a request with credentials."""
    origin = request.headers.get("Origin")
    if origin is None:
        return {"Vary": "Origin"}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Vary": "Origin",
    }


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


def origin_of(request: web.Request) -> str:
    """Return the origin of the page that sent a request, from Origin or else Referer; "" = missing or malformed."""
    origin = request.headers.get("Origin")
    if origin is not None:
        return origin
    try:
        referer = urlsplit(request.headers.get("Referer", ""))
    except ValueError:
        return ""
    return f"{referer.scheme}://{referer.netloc}" if referer.netloc else ""


def _wants_page(request: web.Request) -> bool:
    return "text/html" in request.headers.get("Accept", "")
