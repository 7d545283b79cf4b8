"""SockJS frames (SockJS protocol 0.3.3): the format of messages to and from sockjs-client. Pure.

    o           the session is open            h    heartbeat
    a["...",]   messages, each a JSON string   c[code,"reason"]   the end

A message of the gateway is JSON already; inside `a[...]` it is a JSON string that contains this JSON.
"""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import Encoding
from snorky.gateway.protocol.ws_frames import TEXT, Dialect, text_frame

__all__ = [
    "HEARTBEAT",
    "OPEN",
    "SESSION_DIALECT",
    "WEBSOCKET_DIALECT",
    "array_of",
    "decode_frame",
    "decode_messages",
    "end_frame",
    "quote",
]

OPEN: Final = b"o"
HEARTBEAT: Final = b"h"
# characters that browsers or intermediaries are known to alter, from sockjs-node. Surrogates are never alone here.
_ESCAPED: Final = re.compile("[\u200c-\u200f\u2028-\u202f\u2060-\u206f\ufff0-\uffff\U00010000-\U0010ffff]")


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def quote(message: bytes) -> bytes:
    """Encode a message as a JSON string, with the escapes that the protocol requires. message: UTF-8."""
    quoted = msgspec.json.encode(message.decode())
    return quoted if message.isascii() else _ESCAPED.sub(_escape, quoted.decode()).encode()


def array_of(quoted: bytes) -> bytes:
    """Make an array frame of messages framed by SESSION_DIALECT, joined."""
    return b"a[" + quoted[:-1] + b"]"


def end_frame(code: int, reason: str) -> bytes:
    """Make the close frame of a session."""
    return b"c[%d,%b]" % (code, quote(reason.encode(errors="replace")))


def decode_messages(body: bytes) -> Sequence[str]:
    """Decode an HTTP body of a client: an array of strings. Raises InvalidMessage, with the protocol's texts."""
    if not body:
        raise InvalidMessage("Payload expected.")
    try:
        messages = msgspec.json.decode(body, type=list[str])
        for message in messages:
            message.encode()  # raises for a lone surrogate
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidMessage("Broken JSON encoding.") from None
    return messages


def decode_frame(payload: bytes) -> Sequence[str]:
    """Decode a WebSocket message of a client: an array of strings, or one string; empty = nothing. Raises as above."""
    if not payload:
        return ()
    if payload[:1] == b'"':
        payload = b"[" + payload + b"]"
    return decode_messages(payload)


# The writer joins the frames of a session: each ends with a comma, and `array_of` removes the last one.
SESSION_DIALECT: Final = Dialect("json", Encoding.JSON, TEXT, lambda message: quote(message) + b",")
WEBSOCKET_DIALECT: Final = Dialect(
    "json", Encoding.JSON, TEXT, lambda message: text_frame(b"a[" + quote(message) + b"]")
)
