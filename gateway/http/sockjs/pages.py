"""SockJS pages other than the transports: the greeting, the server's capabilities, and the page for iframes.

The iframe page runs sockjs-client in our origin for pages of the allowed origins only: its header (frame-ancestors)
makes the browser refuse to show it in other pages.
"""

import base64
import hashlib
import html
import secrets
from collections.abc import Collection, Mapping
from email.utils import formatdate
from time import time
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from snorky.gateway.config.parsers import SOCKJS_CLIENT_URL

__all__ = ["CACHE_S", "IframePage", "ancestors_of", "greeting", "info", "long_cached"]

CACHE_S: Final = 31_536_000  # a year

# of the file at SOCKJS_CLIENT_URL: browsers do not run a changed file
_INTEGRITY: Final = "sha384-svdnwiXBL+Js+yUneJSRFy24NgGiOfDM/vkQl/vCeVrcbYD6yW8EwPr1FnxTEZsR"
_SCRIPT: Final = """
    document.domain = document.domain;
    SockJS.bootstrap_iframe();
  """


def long_cached() -> Mapping[str, str]:
    """Make the header fields of responses that never change."""
    return {
        "Cache-Control": f"public, max-age={CACHE_S}",
        "Expires": formatdate(time() + CACHE_S, usegmt=True),
        "Access-Control-Max-Age": str(CACHE_S),
    }


def ancestors_of(allowed_origins: Collection[str]) -> str:
    """Return the CSP frame-ancestors value: which pages may frame ours."""
    named = sorted(each for each in allowed_origins if each != "null")  # which CSP cannot express
    return "*" if "*" in allowed_origins else " ".join(["'self'", *named])


def greeting() -> web.Response:
    """Make the response to requests that only test whether the server exists."""
    return web.Response(text="Welcome to SockJS!\n", content_type="text/plain", charset="UTF-8")


def info() -> web.Response:
    """Make the response with the server's capabilities."""
    body = {
        "websocket": True,
        "origins": ["*:*"],  # required by the protocol; the allowed origins are checked separately
        "cookie_needed": False,  # any node finds any session, without sticky routing
        "entropy": secrets.randbits(32),
    }
    return web.json_response(
        body, headers={"Cache-Control": "no-store, no-cache, no-transform, must-revalidate, max-age=0"}
    )


class IframePage:
    """The iframe page, made once. client_url: the script of sockjs-client, in the version of the framing page."""

    def __init__(self, client_url: str, allowed_origins: Collection[str]) -> None:
        integrity = f' integrity="{_INTEGRITY}" crossorigin="anonymous"' if client_url == SOCKJS_CLIENT_URL else ""
        page = f"""<!DOCTYPE html>
<html>
<head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
  <script src="{html.escape(client_url)}"{integrity}></script>
  <script>{_SCRIPT}</script>
</head>
<body>
  <h2>Don't panic!</h2>
  <p>This is a SockJS hidden iframe. It's used for cross domain magic.</p>
</body>
</html>"""
        self._body = page.encode()
        self._etag = hashlib.sha256(self._body).hexdigest()[:32]
        parts = urlsplit(client_url)
        source = f"{parts.scheme}://{parts.netloc}" if parts.netloc else "'self'"
        script = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
        self._policy = (
            f"default-src 'self'; connect-src 'self' ws: wss:; script-src {source} 'sha256-{script}'; "
            f"frame-ancestors {ancestors_of(allowed_origins)}"
        )

    def respond(self, request: web.Request) -> web.Response:
        """Serve the page, or 304 if the browser has it."""
        headers = {**long_cached(), "ETag": f'"{self._etag}"', "Content-Security-Policy": self._policy}
        if any(each.value == self._etag for each in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=self._body, content_type="text/html", charset="UTF-8", headers=headers)
