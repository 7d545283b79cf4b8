"""Events of Pusher's protocol: one JSON object a frame. Pure.

    {"event": "App\\Events\\Shipped", "channel": "private-orders.7", "data": "{\"id\":7}"}

On a channel, an event is the object {"event", "data", "user_id"?}, with `data` as it was published, a text. For these
clients any other message is an event `message`, with its JSON as data; so is one that would pass for an event of the
server.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import Verbatim, decode_json, encode_json
from snorky.gateway.protocol.publication import Position

__all__ = ["Event", "encode_event", "publication_encoder", "read_event", "text_of"]

NAME_MAX: Final = 200  # characters of an event's name
RESERVED: Final = ("pusher:", "pusher_internal:")  # what clients believe to come from the server itself


@dataclass(frozen=True, slots=True)
class Event:
    """An event that a client sent. data: any JSON value."""

    name: str
    channel: Any
    data: Any


def read_event(frame: bytes) -> Event:
    """Read a frame of a client. Raises InvalidMessage."""
    value = decode_json(frame)
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        raise InvalidMessage('An event is an object with a text "event"')
    return Event(value["event"], value.get("channel"), value.get("data"))


def encode_event(name: str, data: Mapping[str, Any] | str, channel: str | None = None) -> bytes:
    """Encode an event of the server. data: an object is written as a text that is JSON."""
    text = data if isinstance(data, str) else msgspec.json.encode(data).decode()
    fields = {"event": name, "data": text}
    return msgspec.json.encode(fields if channel is None else {"event": name, "channel": channel, "data": text})


def text_of(data: Any) -> str:
    """Return the data of an event as a text. Raises InvalidMessage."""
    if isinstance(data, Verbatim):
        return data.encoded.decode()
    return data if isinstance(data, str) else encode_json(data).decode()


class _Kept(msgspec.Struct):
    """An event on a channel. event: UNSET = it is another message."""

    event: str | msgspec.UnsetType = msgspec.UNSET
    data: msgspec.Raw = msgspec.Raw(b"null")
    user_id: str | msgspec.UnsetType = msgspec.UNSET


_decode_kept = msgspec.json.Decoder(_Kept).decode
_encode_text = msgspec.json.Encoder().encode
_QUOTE, _BRACE, _BACKSLASH = b'"{\\'


def publication_encoder(channel: str) -> Callable[[bytes, Position | None, bytes], bytes]:
    """Return the function that encodes a channel's publications. Its first argument: the payload, JSON already checked.

    Each delivery to a channel needs it, so it is written for speed.
    """
    on_channel = b',"channel":%b,"data":' % _encode_text(channel)
    before = b'{"event":"message"' + on_channel

    def encode(payload: bytes, _position: Position | None, _attributes: bytes) -> bytes:
        payload = payload.strip()
        first = payload[0]
        if first == _QUOTE:
            return before + payload + b"}"
        # without `"event"` in it, it has no such key, unless with escaped characters
        if first == _BRACE and (payload.find(b'"event"') > 0 or _BACKSLASH in payload):
            own = _own_event(payload, on_channel)
            if own is not None:
                return own
        return before + _encode_text(payload.decode()) + b"}"

    return encode


def _own_event(payload: bytes, on_channel: bytes) -> bytes | None:
    """Encode a publication that is an event; None: it is another message. on_channel: what follows the event's name."""
    try:
        kept = _decode_kept(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if kept.event is msgspec.UNSET or kept.event.startswith(RESERVED):
        return None
    data = bytes(kept.data)
    text = data if data.startswith(b'"') else _encode_text(data.decode())
    user = b"" if kept.user_id is msgspec.UNSET else b',"user_id":' + _encode_text(kept.user_id)
    return b'{"event":%b%b%b%b}' % (_encode_text(kept.event), on_channel, text, user)
