"""Events of a stream (WHATWG HTML 9.2), from messages of services. Pure.

    id: EPOCH:OFFSET:TAG                   the position, if the channel has a history
    data: {"title": "Hello"}               a message

    event: gap                             other notices have a name
    data: {"channel": "news", "position": "EPOCH:OFFSET:TAG"}

A client that reconnects sends the last `id`. So the `id` of a stream of several channels must contain all their
positions, which differ by client. Messages are encoded once for all clients, so such a stream gets *records* instead: a
header with the channel and its position, then the event without its `id`, which each stream adds.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from snorky.gateway.protocol.codec import Encoding, Json, encode_json
from snorky.gateway.protocol.publication import Change, Position
from snorky.gateway.protocol.ws_frames import TEXT, Dialect

__all__ = ["DIALECTS", "EventRendering", "Record", "event", "records"]

_NOTICES: Final = frozenset(("gap", "joined", "left", "unsubscribed"))
_BREAKS_TO_SPACES: Final = bytes.maketrans(b"\r\n", b"  ")
_HEADER: Final = struct.Struct("!III")


def event(name: str, data: bytes) -> bytes:
    """Encode an event without its `id`. data: one line of JSON."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data) if name else b"data: %b\n\n" % data


class EventRendering:
    """Encodes messages as events. has_several: as records, with the channel in the data."""

    service = None
    follows_connections = False
    bears_gaps = True

    def __init__(self, *, has_several: bool) -> None:
        self._has_several = has_several

    def encoder(self, channel: Json) -> Callable[[bytes, Position | None, bytes], bytes]:
        """See `Rendering`."""
        return partial(self._publication, channel)

    def _publication(self, channel: Json, payload: bytes, position: Position | None, _attributes: bytes) -> bytes:
        """Encode a publication. Line breaks in JSON are only layout: they would end the line of the event."""
        if b"\n" in payload or b"\r" in payload:
            payload = payload.translate(_BREAKS_TO_SPACES)
        if self._has_several:
            payload = b'{"channel":%b,"message":%b}' % (encode_json(channel), payload)
        return self.whole(channel, None if position is None else str(position), event("", payload))

    def change(self, channel: Json, change: Change) -> None:
        """See `Rendering`. Not called."""

    def notice(self, envelope: Mapping[str, Any]) -> bytes | None:
        """See `Rendering`."""
        message = envelope["message"]
        if not isinstance(message, dict) or message.get("type") not in _NOTICES:
            return None
        data = encode_json({key: value for key, value in message.items() if key != "type"})
        position = message.get("position") if message["type"] == "gap" else None
        return self.whole(message.get("channel"), position, event(message["type"], data))

    def whole(self, channel: Json, position: str | None, rest: bytes) -> bytes:
        """Add the position of a channel to an event. rest: the event."""
        if self._has_several:
            name, place = encode_json(channel), b"" if position is None else position.encode()
            return _HEADER.pack(len(name), len(place), len(rest)) + name + place + rest
        return rest if position is None else b"id: %b\n%b" % (position.encode(), rest)


@dataclass(frozen=True, slots=True)
class Record:
    """An event of a stream of several channels. channel: as JSON. position: "" if the channel has none."""

    channel: bytes
    position: str
    event: bytes


def records(data: bytes) -> Iterator[Record]:
    """Split records that were joined."""
    at = 0
    while at < len(data):
        sizes = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        pieces = []
        for size in sizes:
            pieces.append(data[at : at + size])
            at += size
        yield Record(pieces[0], pieces[1].decode(), pieces[2])


def _bare(message: bytes) -> bytes:
    return message


ONE: Final = EventRendering(has_several=False)
SEVERAL: Final = EventRendering(has_several=True)
DIALECTS: Final[Sequence[tuple[Dialect, EventRendering]]] = (
    (Dialect("json", Encoding.JSON, TEXT, _bare, rendering=ONE), ONE),
    (Dialect("json", Encoding.JSON, TEXT, _bare, rendering=SEVERAL), SEVERAL),
)
