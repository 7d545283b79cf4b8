"""Signatures of Pusher's protocol: HMAC-SHA256 in hex by an app's secret, compared in constant time. Pure."""

import hashlib
import hmac
from collections.abc import Iterable

from snorky.gateway.config.pusher import PusherApp

__all__ = ["is_signed", "request_text", "sign"]


def sign(app: PusherApp, text: str) -> str:
    """Sign a text."""
    return hmac.new(app.secret.encode(), text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def is_signed(app: PusherApp, text: str, auth: object) -> bool:
    """Check what a backend gave to a client. auth: KEY:SIGNATURE."""
    expected = f"{app.key}:{sign(app, text)}".encode()
    return isinstance(auth, str) and hmac.compare_digest(expected, auth.encode("utf-8", "surrogatepass"))


def request_text(method: str, path: str, query: Iterable[tuple[str, str]]) -> str:
    """Build the text of a request of the HTTP API that is signed. query: decoded; the signature in it is left out."""
    pairs = sorted((name.lower(), value) for name, value in query if name != "auth_signature")
    return "\n".join((method, path, "&".join(f"{name}={value}" for name, value in pairs)))
