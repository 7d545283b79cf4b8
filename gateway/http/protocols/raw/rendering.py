"""Frames of a plain WebSocket: one message each, as JSON or as text. Pure."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import Encoding, Json, decode_json
from snorky.gateway.protocol.publication import Change, Position
from snorky.gateway.protocol.ws_frames import TEXT, Dialect, text_frame

__all__ = ["DIALECTS", "Format", "RawRendering", "value_of"]

Format = Literal["json", "text"]


class RawRendering:
    """Sends the message alone. is_text: a string is sent without its quotes."""

    service = None
    follows_connections = False
    bears_gaps = True

    def __init__(self, *, is_text: bool) -> None:
        self._is_text = is_text

    def encoder(self, channel: Json) -> Callable[[bytes, Position | None, bytes], bytes]:
        """See `Rendering`."""
        return self._publication

    def _publication(self, payload: bytes, _position: Position | None, _attributes: bytes) -> bytes:
        if self._is_text and payload.lstrip()[:1] == b'"':
            text: str = msgspec.json.decode(payload, type=str)
            return text.encode()
        return payload

    def change(self, channel: Json, change: Change) -> None:
        """See `Rendering`. Not called."""

    def notice(self, envelope: Mapping[str, Any]) -> None:
        """Send nothing: the client could not distinguish it from a message."""


def value_of(frame: bytes, form: Format) -> Json:
    """Decode a client's frame. Raises InvalidMessage."""
    if form == "json":
        return decode_json(frame)
    try:
        return frame.decode()
    except UnicodeDecodeError:
        raise InvalidMessage("Invalid UTF-8") from None


DIALECTS: Final[Mapping[Format, Dialect]] = {
    "json": Dialect("json", Encoding.JSON, TEXT, text_frame, rendering=RawRendering(is_text=False)),
    "text": Dialect("text", Encoding.JSON, TEXT, text_frame, rendering=RawRendering(is_text=True)),
}
