"""Transports: how frames stand in the responses that sockjs-client reads. Pure.

xhr_streaming, xhr    a line each                          eventsource    server-sent events
htmlfile              a script of a page, in an iframe     jsonp          a script
"""

import secrets
from collections.abc import Mapping
from typing import Final

import msgspec

__all__ = ["TRANSPORTS", "EventSource", "HtmlFile", "Jsonp", "Transport", "Xhr"]

_NO_CACHE: Final = {"Cache-Control": "no-store, no-cache, no-transform, must-revalidate, max-age=0"}
_HTML_MIN_BYTES: Final = 1024  # browsers show nothing of less


class Transport:
    """How one response is written. callback: the name of a function in the client's page, checked."""

    is_streaming = True
    needs_callback = False
    content_type = "text/plain; charset=UTF-8"

    def __init__(self, callback: str = "", ancestors: str = "'none'") -> None:
        """ancestors: who may frame it, as CSP says it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Fields of the response."""
        return {"Content-Type": self.content_type, **_NO_CACHE}

    def prelude(self) -> bytes:
        """What the response begins with."""
        return b""

    def wrap(self, frame: bytes) -> bytes:
        """Make the piece of a response that one frame is."""
        raise NotImplementedError


class Xhr(Transport):
    """A response that ends with the first frame."""

    is_streaming = False
    content_type = "application/javascript; charset=UTF-8"

    def wrap(self, frame: bytes) -> bytes:
        """Make a line."""
        return frame + b"\n"


class XhrStreaming(Xhr):
    """Lines, behind one that is long enough to make browsers hand over what comes."""

    is_streaming = True

    def prelude(self) -> bytes:
        """Make a line that sockjs-client does not understand, and ignores."""
        return b"h" * 2048 + b"\n"


class EventSource(Transport):
    """Server-sent events. sockjs-client decodes percents in them, so ours are written as such."""

    content_type = "text/event-stream; charset=UTF-8"

    def prelude(self) -> bytes:
        """Make an empty line: Opera needs it."""
        return b"\r\n"

    def wrap(self, frame: bytes) -> bytes:
        """Make an event; a frame has no line breaks."""
        return b"data: " + frame.replace(b"%", b"%25") + b"\r\n\r\n"


def _script_string(frame: bytes) -> bytes:
    """Make a string of a script that may stand in HTML: nothing in it ends the script or begins a comment."""
    return msgspec.json.encode(frame.decode()).replace(b"<", b"\\u003c").replace(b">", b"\\u003e")


class HtmlFile(Transport):
    """A page that goes on loading, script by script, in an iframe of the client's page."""

    needs_callback = True
    content_type = "text/html; charset=UTF-8"

    def __init__(self, callback: str = "", ancestors: str = "'none'") -> None:
        self._callback = callback.encode()
        self._nonce = secrets.token_urlsafe(16)
        self._ancestors = ancestors

    @property
    def headers(self) -> Mapping[str, str]:
        """No script runs there but ours."""
        policy = f"default-src 'none'; script-src 'nonce-{self._nonce}'; frame-ancestors {self._ancestors}"
        return {**super().headers, "Content-Security-Policy": policy}

    def prelude(self) -> bytes:
        """Make the page's head."""
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
        """Make a script that hands the frame over."""
        return b'<script nonce="%b">\np(%b);\n</script>\r\n' % (self._nonce.encode(), _script_string(frame))


class Jsonp(Transport):
    """A script that hands one frame to the page that asks, of whatever origin: it must show which."""

    is_streaming = False
    needs_callback = True
    content_type = "application/javascript; charset=UTF-8"

    def __init__(self, callback: str = "", ancestors: str = "'none'") -> None:
        self._callback = callback.encode()

    def wrap(self, frame: bytes) -> bytes:
        """Make the script. The comment: what a plugin would take for its own format does not begin it."""
        return b"/**/%b(%b);\r\n" % (self._callback, _script_string(frame))


TRANSPORTS: Final[Mapping[str, type[Transport]]] = {
    "xhr": Xhr,
    "xhr_streaming": XhrStreaming,
    "eventsource": EventSource,
    "htmlfile": HtmlFile,
    "jsonp": Jsonp,
}
