"""The binary form of Centrifuge messages: Protocol Buffers, for the few messages of this protocol. Pure.

A message is an object, as in the JSON form; what Protocol Buffers leave out (zero, false, empty) is missing in it. Its
fields are in a table: name -> (number, type). Types: "uint", "int", "bool", "text", "bytes", "json" (bytes that are
JSON), the name of a message, "*" and a name (repeated), "@" and a name (a map from texts to messages), "@text" (a map
from texts to texts, only in what is encoded). A "json" field is decoded as `Verbatim`: these clients receive the bytes
that they publish.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.attributes import read_attributes
from snorky.gateway.protocol.codec import Verbatim, decode_json, encode_json
from snorky.gateway.protocol.publication import Position

__all__ = ["FIELDS_MAX", "delimited", "encode_reply", "publication_encoder", "read_commands", "read_emulation"]

_Fields = Mapping[str, tuple[int, str]]

_PUBLICATION: Final = {"data": (4, "json"), "info": (5, "ClientInfo"), "offset": (6, "uint"), "tags": (7, "@text")}
_INFO: Final = {"user": (1, "text"), "client": (2, "text"), "conn_info": (3, "json"), "chan_info": (4, "json")}
_TTL: Final = {"expires": (1, "bool"), "ttl": (2, "uint")}
_ABOUT: Final = {"client": (1, "text"), "version": (2, "text"), "expires": (3, "bool"), "ttl": (4, "uint")}
_CHANNEL: Final = {"channel": (1, "text")}
_TOKEN: Final = {"token": (1, "text")}
_POSITION: Final = {"offset": (1, "uint"), "epoch": (2, "text")}
_MESSAGES: Final[Mapping[str, _Fields]] = {
    "Reply": {
        "id": (1, "uint"),
        "error": (2, "Error"),
        "push": (4, "Push"),
        "connect": (5, "ConnectResult"),
        "subscribe": (6, "SubscribeResult"),
        "unsubscribe": (7, "Nothing"),
        "publish": (8, "Nothing"),
        "presence": (9, "PresenceResult"),
        "presence_stats": (10, "PresenceStatsResult"),
        "history": (11, "HistoryResult"),
        "ping": (12, "Nothing"),
        "rpc": (13, "RpcResult"),
        "refresh": (14, "RefreshResult"),
        "sub_refresh": (15, "SubRefreshResult"),
    },
    "Error": {"code": (1, "uint"), "message": (2, "text"), "temporary": (3, "bool")},
    "Push": {
        "channel": (2, "text"),
        "pub": (4, "Publication"),
        "join": (5, "Change"),
        "leave": (6, "Change"),
        "unsubscribe": (7, "Unsubscribe"),
        "subscribe": (9, "Subscribe"),
        "disconnect": (11, "Disconnect"),
    },
    "Disconnect": {"code": (1, "uint"), "reason": (2, "text")},
    "Publication": _PUBLICATION,
    "ClientInfo": _INFO,
    "Change": {"info": (1, "ClientInfo")},
    "Unsubscribe": {"code": (2, "uint"), "reason": (3, "text")},
    "Subscribe": {
        "recoverable": (1, "bool"),
        "epoch": (4, "text"),
        "offset": (5, "uint"),
        "positioned": (6, "bool"),
    },
    "ConnectResult": {
        **_ABOUT,
        "subs": (6, "@SubscribeResult"),
        "ping": (7, "uint"),
        "pong": (8, "bool"),
        "session": (9, "text"),
        "node": (10, "text"),
    },
    "RefreshResult": _ABOUT,
    "SubRefreshResult": _TTL,
    "SubscribeResult": {
        **_TTL,
        "recoverable": (3, "bool"),
        "epoch": (6, "text"),
        "publications": (7, "*Publication"),
        "recovered": (8, "bool"),
        "offset": (9, "uint"),
        "positioned": (10, "bool"),
        "was_recovering": (12, "bool"),
    },
    "Nothing": {},
    "PresenceResult": {"presence": (1, "@ClientInfo")},
    "PresenceStatsResult": {"num_clients": (1, "uint"), "num_users": (2, "uint")},
    "HistoryResult": {"publications": (1, "*Publication"), "epoch": (2, "text"), "offset": (3, "uint")},
    "RpcResult": {"data": (1, "json")},
    "Command": {
        "id": (1, "uint"),
        "connect": (4, "ConnectRequest"),
        "subscribe": (5, "SubscribeRequest"),
        "unsubscribe": (6, "Channel"),
        "publish": (7, "PublishRequest"),
        "presence": (8, "Channel"),
        "presence_stats": (9, "Channel"),
        "history": (10, "HistoryRequest"),
        "ping": (11, "Nothing"),
        "send": (12, "Nothing"),
        "rpc": (13, "RpcRequest"),
        "refresh": (14, "Token"),
        "sub_refresh": (15, "SubRefreshRequest"),
    },
    "Token": _TOKEN,
    "ConnectRequest": {**_TOKEN, "subs": (3, "@SubscribeRequest")},
    "Channel": _CHANNEL,
    "SubscribeRequest": {
        "channel": (1, "text"),
        "token": (2, "text"),
        "recover": (3, "bool"),
        "epoch": (6, "text"),
        "offset": (7, "uint"),
        "flag": (14, "int"),
    },
    "PublishRequest": {"channel": (1, "text"), "data": (2, "json")},
    "HistoryRequest": {"channel": (1, "text"), "limit": (7, "int"), "since": (8, "Position"), "reverse": (9, "bool")},
    "Position": _POSITION,
    "RpcRequest": {"data": (1, "json"), "method": (2, "text")},
    "SubRefreshRequest": {"channel": (1, "text"), "token": (2, "text")},
    "EmulationRequest": {"node": (1, "text"), "session": (2, "text"), "data": (3, "bytes")},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NUMBERS: Final = ("uint", "int", "bool")  # types of varints
_VARINT_MAX_BYTES: Final = 10
FIELDS_MAX: Final = 1_100  # of one message: a client that connects again names its channels, at most 1,000 by default


def _varint(value: int) -> bytes:
    return _SHORT[value] if value < _SHORT_END else _any_varint(value)


def _any_varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _tag(number: int, kind: str) -> bytes:
    return _varint(number << 3 | (_VARINT if kind in _NUMBERS else _BYTES))


_SHORT_END: Final = 1024
_SHORT: Final = tuple(map(_any_varint, range(_SHORT_END)))  # lengths of most messages
_BY_NAME: Final = {
    name: {field: (_tag(number, kind), kind) for field, (number, kind) in fields.items()}
    for name, fields in _MESSAGES.items()
}
_BY_NUMBER: Final = {
    name: {number: (field, kind) for field, (number, kind) in fields.items()} for name, fields in _MESSAGES.items()
}
_KEY, _VALUE = 1, 2  # fields of an entry of a map
_PUSH, _CHANNEL_OF_PUSH, _PUB = _BY_NAME["Reply"]["push"][0], _BY_NAME["Push"]["channel"][0], _BY_NAME["Push"]["pub"][0]
_DATA, _OFFSET = _BY_NAME["Publication"]["data"][0], _BY_NAME["Publication"]["offset"][0]


def encode_reply(reply: Mapping[str, Any]) -> bytes:
    """Encode a reply, with its length in front."""
    return delimited(_encode("Reply", reply))


def publication_encoder(channel: str) -> Callable[[bytes, Position | None, bytes], bytes]:
    """Return the function that encodes the pushes of a channel's publications, as `encode_reply` does.

    Its arguments: the payload, JSON; the position, if there is one; the attributes.
    """
    name = (_CHANNEL_OF_PUSH + delimited(channel.encode()) if channel else b"") + _PUB

    def encode(payload: bytes, position: Position | None, attributes: bytes) -> bytes:
        place = b"" if position is None or not position.offset else _OFFSET + _varint(position.offset)
        if attributes:
            place += _encode("Publication", read_attributes(attributes))
        size = len(payload)  # `_varint` is written out: calling it four times would double the cost
        before = _SHORT[size] if size < _SHORT_END else _any_varint(size)
        size += len(_DATA) + len(before) + len(place)  # of the publication; below, of the messages around it
        pub = _SHORT[size] if size < _SHORT_END else _any_varint(size)
        size += len(name) + len(pub)
        push = _SHORT[size] if size < _SHORT_END else _any_varint(size)
        size += len(_PUSH) + len(push)
        reply = _SHORT[size] if size < _SHORT_END else _any_varint(size)
        return b"%b%b%b%b%b%b%b%b%b" % (reply, _PUSH, push, name, pub, _DATA, before, payload, place)

    return encode


def delimited(data: bytes) -> bytes:
    """Write the length of bytes in front of them."""
    return _varint(len(data)) + data


def read_commands(frame: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Decode the commands of a frame, each with its size in bytes. Raises InvalidMessage, after those before it."""
    at = 0
    while at < len(frame):
        size, at = _read_varint(frame, at)
        if size > len(frame) - at:
            raise InvalidMessage("A message is cut")
        yield _decode("Command", frame[at : at + size]), size
        at += size


def read_emulation(body: bytes) -> dict[str, Any]:
    """Decode the request that carries later commands: `node`, `session`, and `data`, a frame. Raises InvalidMessage."""
    return _decode("EmulationRequest", body)


def _encode(name: str, message: Mapping[str, Any]) -> bytes:
    found = b""
    fields = _BY_NAME[name]
    for field, value in message.items():
        tag, kind = fields[field]
        if kind in _NUMBERS:
            if value:
                found += tag + _varint(int(value))
        elif kind == "text":
            if value:
                found += tag + delimited(value.encode())
        elif kind == "json":
            found += tag + delimited(bytes(value) if isinstance(value, msgspec.Raw) else encode_json(value))
        elif kind[0] == "*":
            found += b"".join(tag + delimited(_encode(kind[1:], each)) for each in value)
        elif kind == "@text":
            found += b"".join(tag + delimited(_entry(key, each.encode())) for key, each in value.items())
        elif kind[0] == "@":
            found += b"".join(tag + delimited(_entry(key, _encode(kind[1:], each))) for key, each in value.items())
        else:
            found += tag + delimited(_encode(kind, value))
    return found


def _entry(key: str, value: bytes) -> bytes:
    """Encode an entry of a map."""
    return _tag(_KEY, "text") + delimited(key.encode()) + _tag(_VALUE, "bytes") + delimited(value)


def _decode(name: str, data: bytes) -> dict[str, Any]:
    """Decode a message. Fields that its table lacks are ignored. Raises InvalidMessage."""
    found: dict[str, Any] = {}
    at = count = 0
    while at < len(data):
        count += 1
        tag, at = _read_varint(data, at)
        value, at = _read_value(data, at, tag & 7)
        field, kind = _BY_NUMBER[name].get(tag >> 3, ("", ""))
        if count > FIELDS_MAX or (field in found and kind[0] != "@"):
            raise InvalidMessage("A message has too many fields, or one of them twice")
        if not field:
            continue
        if isinstance(value, int) is not (kind in ("uint", "int", "bool")):
            raise InvalidMessage("A field has another type")
        if kind[0] == "@" and isinstance(value, bytes):
            key, entry = _entry_of(kind[1:], value)
            found.setdefault(field, {})[key] = entry
        else:
            found[field] = _value_of(kind, value)
    return found


def _entry_of(name: str, data: bytes) -> tuple[str, dict[str, Any]]:
    """Decode an entry of a map."""
    key, entry, at = "", b"", 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        value, at = _read_value(data, at, tag & 7)
        if tag == _KEY << 3 | _BYTES and isinstance(value, bytes):
            key = _value_of("text", value)
        elif tag == _VALUE << 3 | _BYTES and isinstance(value, bytes):
            entry = value
        else:
            raise InvalidMessage("An entry of a map has a key and a value")
    return key, _decode(name, entry)


def _value_of(kind: str, value: int | bytes) -> Any:
    if isinstance(value, int):
        return bool(value) if kind == "bool" else value - (1 << 64) if kind == "int" and value >> 63 else value
    if kind == "text":
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise InvalidMessage("Invalid UTF-8") from None
    if kind == "bytes":
        return value
    return Verbatim(decode_json(value), value) if kind == "json" else _decode(kind, value)


def _read_value(data: bytes, at: int, wire_type: int) -> tuple[int | bytes, int]:
    if wire_type == _VARINT:
        return _read_varint(data, at)
    if wire_type == _BYTES:
        size, at = _read_varint(data, at)
    elif wire_type in (_FIXED64, _FIXED32):
        size = 8 if wire_type == _FIXED64 else 4
    else:
        raise InvalidMessage("Unknown wire type")
    if size > len(data) - at:
        raise InvalidMessage("A message is cut")
    return data[at : at + size], at + size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + _VARINT_MAX_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & (1 << 64) - 1, at + index + 1
    raise InvalidMessage("A number is cut, or too long")
