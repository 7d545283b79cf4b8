"""Transports: the formats of the HTTP responses that sockjs-client reads. Pure.

xhr_streaming, xhr    a line each                          eventsource    server-sent events
htmlfile              a script of a page, in an iframe     jsonp          a script
"""

import secrets
from collections.abc import Mapping
from typing import Final

import msgspec

__all__ = ["TRANSPORTS", "EventSource", "HtmlFile", "Jsonp", "Transport", "Xhr"]

_NO_CACHE: Final = {"Cache-Control": "no-store, no-cache, no-transform, must-revalidate, max-age=0"}
_HTML_MIN_BYTES: Final = 1024  # browsers do not render less


class Transport:
    """The format of one response. callback: the name of a function in the client's page, validated."""

    is_streaming = True
    needs_callback = False
    content_type = "text/plain; charset=UTF-8"

    def __init__(self, callback: str = "", ancestors: str = "'none'") -> None:
        """ancestors: the CSP frame-ancestors value."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields of the response."""
        return {"Content-Type": self.content_type, **_NO_CACHE}

    def prelude(self) -> bytes:
        """Return the beginning of the response."""
        return b""

    def wrap(self, frame: bytes) -> bytes:
        """Encode one frame as a part of the response."""
        raise NotImplementedError


class Xhr(Transport):
    """A response that ends after the first frame."""

    is_streaming = False
    content_type = "application/javascript; charset=UTF-8"

    def wrap(self, frame: bytes) -> bytes:
        """Encode the frame as a line."""
        return frame + b"\n"


class XhrStreaming(Xhr):
    """Lines, after a first line that is long enough to make browsers deliver data immediately."""

    is_streaming = True

    def prelude(self) -> bytes:
        """Return a line that sockjs-client ignores."""
        return b"h" * 2048 + b"\n"


class EventSource(Transport):
    """Server-sent events. sockjs-client decodes percent escapes in them, so percent signs are escaped."""

    content_type = "text/event-stream; charset=UTF-8"

    def prelude(self) -> bytes:
        """Return an empty line: Opera needs it."""
        return b"\r\n"

    def wrap(self, frame: bytes) -> bytes:
        """Encode the frame as an event; a frame has no line breaks."""
        return b"data: " + frame.replace(b"%", b"%25") + b"\r\n\r\n"


def _script_string(frame: bytes) -> bytes:
    """Encode a script's string for use in HTML: it contains nothing that ends the script or begins a comment."""
    return msgspec.json.encode(frame.decode()).replace(b"<", b"\\u003c").replace(b">", b"\\u003e")


class HtmlFile(Transport):
    """A page that keeps loading, one script per frame, in an iframe of the client's page."""

    needs_callback = True
    content_type = "text/html; charset=UTF-8"

    def __init__(self, callback: str = "", ancestors: str = "'none'") -> None:
        self._callback = callback.encode()
        self._nonce = secrets.token_urlsafe(16)
        self._ancestors = ancestors

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields with a policy that allows only our own scripts."""
        policy = f"default-src 'none'; script-src 'nonce-{self._nonce}'; frame-ancestors {self._ancestors}"
        return {**super().headers, "Content-Security-Policy": policy}

    def prelude(self) -> bytes:
        """Return the beginning of the page."""
        page = b"""<!DOCTYPE html>
<html>
<head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
</head><body><h2>Don't panic!</h2>
  <script nonce="%b">
    document.domain = document.domain;
    var c = parent.%b;
    c.start();
    function p(d) {c.message(d);};
    window.onload = c.stop;
  </script>
""" % (self._nonce.encode(), self._callback)
        return page.ljust(_HTML_MIN_BYTES) + b"\r\n\r\n"

    def wrap(self, frame: bytes) -> bytes:
        """Encode the frame as a script that passes it to the page."""
        return b'<script nonce="%b">\np(%b);\n</script>\r\n' % (self._nonce.encode(), _script_string(frame))


class Jsonp(Transport):
    """A script that passes one frame to the requesting page; any origin can request it, so the Referer is checked."""

    is_streaming = False
    needs_callback = True
    content_type = "application/javascript; charset=UTF-8"

    def __init__(self, callback: str = "", ancestors: str = "'none'") -> None:
        self._callback = callback.encode()

    def wrap(self, frame: bytes) -> bytes:
        """Encode the frame as a script. The leading comment keeps plugins from misinterpreting the content."""
        return b"/**/%b(%b);\r\n" % (self._callback, _script_string(frame))


TRANSPORTS: Final[Mapping[str, type[Transport]]] = {
    "xhr": Xhr,
    "xhr_streaming": XhrStreaming,
    "eventsource": EventSource,
    "htmlfile": HtmlFile,
    "jsonp": Jsonp,
}
