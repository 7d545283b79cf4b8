"""Signatures of Pusher's protocol: HMAC-SHA256 in hex by an app's secret, compared in constant time. Pure."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from snorky.gateway.config.pusher import PusherApp

__all__ = ["is_signed", "request_text", "sign", "signed_query"]


def sign(app: PusherApp, text: str) -> str:
    """Sign a text."""
    return hmac.new(app.secret.encode(), text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def is_signed(app: PusherApp, text: str, auth: object) -> bool:
    """Check what a backend gave to a client. auth: KEY:SIGNATURE."""
    expected = f"{app.key}:{sign(app, text)}".encode()
    return isinstance(auth, str) and hmac.compare_digest(expected, auth.encode("utf-8", "surrogatepass"))


def signed_query(query: Iterable[tuple[str, str]]) -> dict[str, str] | None:
    """Read the parameters of a request by their names in lower case, as they are signed. query: decoded.

    None: another query would have the same text to sign, so that a signature would not say which one is meant.
    """
    found: dict[str, str] = {}
    for written, value in query:
        name = written.lower()
        if name in found or "&" in name or "=" in name or "&" in value:
            return None
        found[name] = value
    return found


def request_text(method: str, path: str, query: Mapping[str, str]) -> str:
    """Build the text of a request of the HTTP API that is signed. path: decoded. query: of `signed_query`."""
    pairs = sorted((name, value) for name, value in query.items() if name != "auth_signature")
    return "\n".join((method, path, "&".join(f"{name}={value}" for name, value in pairs)))
