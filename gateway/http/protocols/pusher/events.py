"""Events of Pusher's protocol: one JSON object a frame. Pure.

    {"event": "App\\Events\\Shipped", "channel": "private-orders.7", "data": "{\"id\":7}"}

On a channel, an event is the object {"event", "data", "user_id"?}, with `data` as it was published, a text. For these
clients any other message is an event `message`, with its JSON as data; so is one that would pass for an event of the
server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import Verbatim, decode_json, encode_json

__all__ = ["Event", "encode_event", "encode_publication", "read_event", "text_of"]

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


class _Sent(msgspec.Struct):
    """An event to clients. data: a text; as Raw it is encoded already."""

    event: str
    channel: str
    data: msgspec.Raw | str
    user_id: str | msgspec.UnsetType


_decode_kept = msgspec.json.Decoder(_Kept).decode


def encode_publication(channel: str, payload: bytes) -> bytes:
    """Encode a publication. payload: JSON, already checked."""
    data = payload = payload.strip()
    name: str = "message"
    user: str | msgspec.UnsetType = msgspec.UNSET
    if payload[:1] == b"{":
        try:
            kept = _decode_kept(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        else:
            if kept.event is not msgspec.UNSET and not kept.event.startswith(RESERVED):
                name, data, user = kept.event, bytes(kept.data), kept.user_id
    text = msgspec.Raw(data) if data[:1] == b'"' else data.decode()
    return msgspec.json.encode(_Sent(name, channel, text, user))
