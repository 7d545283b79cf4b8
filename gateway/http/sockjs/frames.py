"""SockJS frames (SockJS protocol 0.3.3): what a message looks like to sockjs-client. Pure.

    o           the session is open            h    heartbeat
    a["...",]   messages, each a JSON string   c[code,"reason"]   the end

A message of ours is JSON already; inside of `a[...]` it is a string that contains it.
"""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.codec import Encoding
from gateway.errors import InvalidMessage
from gateway.frames import TEXT, Dialect, text_frame

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
# what JSON in browsers, or the way to them, was seen to alter: as sockjs-node has it. Surrogates are never alone here.
_ESCAPED: Final = re.compile("[\u200c-\u200f\u2028-\u202f\u2060-\u206f\ufff0-\uffff\U00010000-\U0010ffff]")


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def quote(message: bytes) -> bytes:
    """Make a JSON string that contains a message, with the escapes that the protocol needs. message: UTF-8."""
    quoted = msgspec.json.encode(message.decode())
    return quoted if message.isascii() else _ESCAPED.sub(_escape, quoted.decode()).encode()


def array_of(quoted: bytes) -> bytes:
    """Make the frame of messages as SESSION_DIALECT frames them, one behind the other."""
    return b"a[" + quoted[:-1] + b"]"


def end_frame(code: int, reason: str) -> bytes:
    """Make the last frame of a session."""
    return b"c[%d,%b]" % (code, quote(reason.encode(errors="replace")))


def decode_messages(body: bytes) -> Sequence[str]:
    """Read what a client sends by HTTP: an array of strings. Raises InvalidMessage, with the protocol's texts."""
    if not body:
        raise InvalidMessage("Payload expected.")
    try:
        messages = msgspec.json.decode(body, type=list[str])
        for message in messages:
            message.encode()  # a lone surrogate is no text
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidMessage("Broken JSON encoding.") from None
    return messages


def decode_frame(payload: bytes) -> Sequence[str]:
    """Read what a client sends by WebSocket: an array of strings, or one string; empty = nothing. As above."""
    if not payload:
        return ()
    if payload[:1] == b'"':
        payload = b"[" + payload + b"]"
    return decode_messages(payload)


# Frames of a session are joined by who writes them: each ends with a comma, and `array_of` takes off the last.
SESSION_DIALECT: Final = Dialect("json", Encoding.JSON, TEXT, lambda message: quote(message) + b",")
WEBSOCKET_DIALECT: Final = Dialect(
    "json", Encoding.JSON, TEXT, lambda message: text_frame(b"a[" + quote(message) + b"]")
)
