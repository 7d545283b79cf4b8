"""The WebSocket handshake (RFC 6455 4.2) and its Origin check. Headers in, response bytes out; no I/O.

Rules:
- An Origin header must match an allowed origin exactly, or a pattern with `*.` (`snorky.gateway.config.origins`).
  The node's own origin is allowed only if its host is a loopback name: otherwise an attacker's DNS could make
  the Host header match.
- Without an Origin the client is not a browser, and is allowed (it could send any).
- A header that must occur only once and occurs twice is refused: a proxy in front may have checked the other one.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from snorky.gateway.config.settings import is_loopback
from snorky.gateway.errors import SnorkyError
from snorky.gateway.protocol.codec import Encoding
from snorky.gateway.protocol.ws_frames import Dialect, dialect_for

__all__ = ["SUBPROTOCOLS", "HandshakeRefused", "Upgrade", "check_origin", "upgrade"]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
SUBPROTOCOLS: Final = {"snorky.json": Encoding.JSON, "snorky.msgpack": Encoding.MSGPACK}
# RFC 7692 7.1: only the window has a value, 8 to 15, optionally quoted
_DEFLATE_PARAMETER: Final = re.compile(
    r'(server|client)_no_context_takeover|client_max_window_bits(\s*=\s*("?)([89]|1[0-5])\3)?'
)
_HEAD: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n"
)
_DEFLATE: Final = (
    b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
)


class Headers(Protocol):
    """Header fields by case-insensitive name; a name may occur several times."""

    def get(self, name: str, /, default: str) -> str:
        """Return the first value."""

    def getall(self, name: str, /, default: tuple[()]) -> Sequence[str]:
        """Return all values, in order."""


class HandshakeRefused(SnorkyError):
    """A handshake is refused with an HTTP error. reason: a literal for metrics; the text is for the developer."""

    code = "handshake_refused"

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Upgrade:
    """An accepted handshake. response: the complete head of the 101 response."""

    dialect: Dialect
    response: bytes


def upgrade(
    headers: Headers,
    *,
    allowed_origins: Collection[str],
    compression: bool,
    subprotocols: Mapping[str, Encoding] = SUBPROTOCOLS,
) -> Upgrade:
    """Accept or refuse a handshake. subprotocols: of the endpoint. Raises HandshakeRefused."""
    # exactly one protocol: only then does aiohttp pass on the bytes that follow the request
    origins = headers.getall("Origin", ())
    origin = origins[0] if origins else None
    if _tokens(headers, "Upgrade") != ["websocket"] or "upgrade" not in _tokens(headers, "Connection"):
        check_origin(origin, headers.get("Host", ""), allowed_origins)  # a page may ask by fetch why it was refused
        raise HandshakeRefused(426, "no_upgrade", "This is a WebSocket endpoint: connect with ws:// or wss://")
    versions, keys = headers.getall("Sec-WebSocket-Version", ()), headers.getall("Sec-WebSocket-Key", ())
    for name, values in (("Sec-WebSocket-Version", versions), ("Sec-WebSocket-Key", keys), ("Origin", origins)):
        if len(values) > 1:
            raise HandshakeRefused(400, "duplicate_header", f"{name} occurs twice")
    if not versions or versions[0] != "13":
        raise HandshakeRefused(426, "version", "Sec-WebSocket-Version must be 13")
    key = keys[0] if keys else ""
    if not _is_key(key):
        raise HandshakeRefused(400, "key", "Sec-WebSocket-Key must be 16 bytes in base64")
    check_origin(origin, headers.get("Host", ""), allowed_origins)
    subprotocol, encoding = _subprotocol(_joined(headers, "Sec-WebSocket-Protocol"), subprotocols)
    deflate = compression and _offers_deflate(_joined(headers, "Sec-WebSocket-Extensions"))
    # RFC 6455 4.2.2: the SHA-1 shows that the server speaks WebSocket; it is not used for security
    accept = binascii.b2a_base64(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest(), newline=False)
    head = _HEAD % accept
    if subprotocol:
        head += f"Sec-WebSocket-Protocol: {subprotocol}\r\n".encode()
    if deflate:
        head += _DEFLATE
    return Upgrade(dialect_for(encoding, deflate=deflate), head + b"\r\n")


def check_origin(origin: str | None, host: str, allowed_origins: Collection[str]) -> None:
    """Refuse web pages that may not connect. host: the Host header. Raises HandshakeRefused."""
    if origin is None or origin in allowed_origins or "*" in allowed_origins:
        return
    try:
        own_name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        own_name = ""
    if is_loopback(own_name) and origin in (f"http://{host}", f"https://{host}"):
        return
    raise HandshakeRefused(403, "origin", "Origin not allowed: add it to [public] allowed_origins")


def _joined(headers: Headers, name: str) -> str:
    """Join a list header that may be split over several lines (RFC 9110 5.2)."""
    return ",".join(headers.getall(name, ()))


def _tokens(headers: Headers, name: str) -> list[str]:
    return [token.strip().lower() for token in _joined(headers, name).split(",")]


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def _subprotocol(offer: str, known: Mapping[str, Encoding]) -> tuple[str | None, Encoding]:
    """Choose the client's first subprotocol that is supported; None and JSON if there is none."""
    for name in (each.strip() for each in offer.split(",")):
        if name in known:
            return name, known[name]
    return None, Encoding.JSON


def _offers_deflate(offer: str) -> bool:
    """Look for an acceptable offer of permessage-deflate: RFC 7692 7.1; a smaller window for the server is declined."""
    for extension in offer.lower().split(","):
        name, *parameters = (part.strip() for part in extension.split(";"))
        names = {parameter.partition("=")[0].strip() for parameter in parameters}
        is_known = all(_DEFLATE_PARAMETER.fullmatch(parameter) for parameter in parameters)
        if name == "permessage-deflate" and is_known and len(names) == len(parameters):
            return True
    return False
