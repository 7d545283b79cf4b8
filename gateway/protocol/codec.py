"""Strict encoding and decoding of values; envelopes.

Rules:
- One data model: JSON with 64-bit integers. Both `encode_*` accept whatever any `decode_*` accepts, so a message
  received in one encoding can be sent in every other.
- Strict in both directions: UTF-8 without lone surrogates, string keys (of duplicates the last wins), finite
  floats, integers in -2^63 .. 2^64-1, at most MAX_DEPTH nested containers and
  MAX_VALUES values (containers count, keys do not). In MessagePack neither bin nor ext.
- Hostile bytes raise only InvalidMessage and InvalidEnvelope, whose texts never
  repeat the input: they may be shown to the peer.

How it works: the libraries do the work in C and are correct except for a few traps, each named
at the code that guards against it. A guard is first a cheap bound on the raw bytes (0.1 us) that an ordinary message
never exceeds; only a message that exceeds it is checked value by value. Objects to encode come from a service's
Python code and are always checked: msgspec would silently turn NaN into null and bytes into base64.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgpack  # type: ignore[import-untyped]  # ships no annotations
import msgspec

from snorky.gateway.errors import InvalidEnvelope, InvalidMessage
from snorky.gateway.protocol.channel_names import (
    CHANNEL_MAX_BYTES,
    MAX_DEPTH,
    Json,
    canonical,
    channel_key,
    channel_name,
    channel_of,
)

__all__ = [
    "CHANNEL_MAX_BYTES",
    "MAX_DEPTH",
    "MAX_VALUES",
    "Encoding",
    "Envelope",
    "Json",
    "Verbatim",
    "canonical",
    "channel_key",
    "channel_name",
    "channel_of",
    "decode",
    "decode_envelope",
    "decode_json",
    "decode_msgpack",
    "encode",
    "encode_json",
    "encode_msgpack",
    "envelope_of",
    "json_size",
]

MAX_VALUES = 10_000  # RELIABILITY "Bad input"

_BUILTINS = frozenset([int, float, list, tuple, dict])  # types that `_verify` has to inspect
_INTEGER_MIN = -(2**63)
_INTEGER_MAX = 2**64 - 1

_json_decode = msgspec.json.Decoder().decode
_json_encode = msgspec.json.Encoder().encode
_NAME = re.compile(r"[a-z0-9_-]+").fullmatch
_BYTE_POSITION = re.compile(r"byte \d+")

# 19 digits in a row may be an integer beyond 64 bits (-2^63 has 19). Translating all digits to one and
# searching is C speed: 0.24 us for 120 bytes, where a regular expression takes 1.8.
_DIGITS_TO_0 = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19

# First bytes of MessagePack items (its spec, "Formats"). They also occur inside strings and numbers:
# counting them gives an upper bound.
_CONTAINERS = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_FLOATS_AND_BINS = bytes([0xCA, 0xCB, 0xC4, 0xC5, 0xC6])
_ORDINARY = bytes(set(range(256)) - {*_CONTAINERS, *_FLOATS_AND_BINS})
_ARRAYS = frozenset([*range(0x90, 0xA0), 0xDC, 0xDD])
_MAPS = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])


class Encoding(Enum):
    """The serialization format of values."""

    JSON = "json"
    MSGPACK = "msgpack"


_JSON = Encoding.JSON  # reading an Enum's attribute is slower than a global, and each render does it


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message from a peer and the service it is addressed to (PROTOCOL "Envelope")."""

    service: str
    message: Json


_envelope_decode = msgspec.json.Decoder(Envelope).decode


def decode_json(data: bytes | memoryview) -> Json:
    """Decode one strict JSON text (RFC 8259, no byte order mark). Raises InvalidMessage, and nothing else."""
    if type(data) is not bytes:
        data = bytes(data)
    try:
        value: Json = _json_decode(data)
    except msgspec.ValidationError as error:  # 1e999, or some thousand digits
        raise InvalidMessage("Number out of range") from error
    except msgspec.DecodeError as error:
        found = _BYTE_POSITION.search(str(error))
        raise InvalidMessage(f"Malformed JSON ({found.group() if found else 'truncated'})") from error
    except UnicodeDecodeError as error:
        raise InvalidMessage("Invalid UTF-8") from error
    except RecursionError as error:
        raise InvalidMessage("Nested too deeply") from error
    if _is_suspicious(data):
        _verify(value)
    return value


def _is_suspicious(data: bytes) -> bool:
    """Return whether JSON that is decoded may be too deep or too long, or contain a number out of range."""
    return len(data) >= len(_LONG_NUMBER) and (  # shorter data cannot meet any of the three conditions
        data.count(b"[") + data.count(b"{") > MAX_DEPTH
        or data.translate(_DIGITS_TO_0).find(_LONG_NUMBER) >= 0  # msgspec makes a Python int of any size
        or len(data) > 2 * MAX_VALUES  # a value takes at least a byte, plus a separator
    )


def decode_msgpack(data: bytes | memoryview) -> Json:
    """Decode one strict MessagePack value with nothing after it. Raises InvalidMessage, and nothing else."""
    if type(data) is not bytes:
        data = bytes(data)
    suspects = data.translate(None, _ORDINARY)
    try:
        if len(suspects) > MAX_DEPTH and suspects.count(0xDC) + suspects.count(0xDD) > MAX_DEPTH:
            _scan_msgpack(data)
        value: Json = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_bin_len=0,
            max_ext_len=0,
            max_array_len=MAX_VALUES,  # refused at the header, not after 10,000 items
            max_map_len=MAX_VALUES,
            ext_hook=_refuse_ext,
        )
    except UnicodeDecodeError as error:
        raise InvalidMessage("Invalid UTF-8") from error
    except (ValueError, msgpack.UnpackException) as error:  # StackError and ExtraData are ValueErrors
        raise InvalidMessage("Malformed MessagePack") from error
    if suspects and (
        len(data) > MAX_VALUES
        or len(suspects) > MAX_DEPTH  # perhaps too deep; the library's own limit is 1,024
        or suspects.translate(None, _CONTAINERS)  # NaN, infinity; a bin of length 0, which max_bin_len allows
    ):
        _verify(value)
    return value


def decode(data: bytes | memoryview, encoding: Encoding) -> Json:
    """Decode one strict value. Raises InvalidMessage, and nothing else."""
    return decode_json(data) if encoding is _JSON else decode_msgpack(data)


def encode_json(value: Json, *, max_values: int = MAX_VALUES) -> bytes:
    """Encode a value as compact UTF-8 JSON.

    value: as decoded, or made by a service: tuples, str enums, ordered dicts and other subclasses are written as
    their base types. max_values: a higher limit, only for data that no node decodes. Raises InvalidMessage: a value
    that a strict reader refuses (see the rules above), or another type, e.g. a date or bytes.
    """
    try:
        return _json_encode(value if _verify(value, max_values) else _plain(value))
    except UnicodeEncodeError as error:
        raise InvalidMessage("Lone surrogate in a string") from error


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A payload with the bytes that a client wrote, which its subscribers receive. encoded: JSON, already checked."""

    value: Json
    encoded: bytes


def json_size(value: Json | Verbatim) -> int:
    """Return the size of a value as JSON, in bytes. Raises InvalidMessage: as `encode_json`."""
    return len(value.encoded if isinstance(value, Verbatim) else encode_json(value))


def encode_msgpack(value: Json, *, max_values: int = MAX_VALUES) -> bytes:
    """Encode a value as MessagePack; accepts and refuses the same values as `encode_json`."""
    try:
        data: bytes = msgpack.packb(value if _verify(value, max_values) else _plain(value))
    except UnicodeEncodeError as error:
        raise InvalidMessage("Lone surrogate in a string") from error
    return data


def encode(value: Json, encoding: Encoding, *, max_values: int = MAX_VALUES) -> bytes:
    """Encode a value. Raises InvalidMessage: as `encode_json`."""
    return (encode_json if encoding is _JSON else encode_msgpack)(value, max_values=max_values)


def decode_envelope(data: bytes | memoryview, encoding: Encoding) -> Envelope:
    """Decode a peer's message. Raises InvalidMessage: not a strict value. InvalidEnvelope: as `envelope_of`."""
    if encoding is _JSON and type(data) is bytes and not _is_suspicious(data):
        try:
            envelope = _envelope_decode(data)  # without a dict around the message
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # `envelope_of` names the fault
        else:
            if _NAME(envelope.service) is not None:
                return envelope
    return envelope_of(decode(data, encoding))


def envelope_of(value: Json) -> Envelope:
    """Convert a value to an envelope; keys other than "service" and "message" are ignored.

    Raises InvalidEnvelope: not an envelope. The error's `service` is set if only the message is missing.
    """
    if not isinstance(value, dict):
        raise InvalidEnvelope('Expected an object with "service" and "message"')
    if "service" not in value:
        raise InvalidEnvelope('Missing "service"')
    service = value["service"]
    if not isinstance(service, str) or _NAME(service) is None:
        raise InvalidEnvelope('"service" must be a string of a-z, 0-9, _ and -')
    if "message" not in value:
        raise InvalidEnvelope('Missing "message"', service=service)
    return Envelope(service, value["message"])


def _verify(value: Any, max_values: int = MAX_VALUES) -> bool:
    """Refuse a value that is not strict; return True if it contains only plain types (else: `_plain`).

    It works level by level, without recursion: depth, width and cycles do no harm. Lone surrogates are not
    checked here: the encoders find them.
    """
    is_plain = True
    level: list[Any] = [value]
    seen = 0
    for depth in range(MAX_DEPTH + 1):
        seen += len(level)
        if seen > max_values:
            raise InvalidMessage("Too many values")
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str or item is None or kind is bool:
                continue
            if kind not in _BUILTINS:
                is_plain = False
                kind = _base(item)
            if kind is int:
                if not _INTEGER_MIN <= item <= _INTEGER_MAX:
                    raise InvalidMessage("Number out of range")
            elif kind is float:
                if item - item != 0.0:  # NaN and the infinities; a third of isfinite()'s cost
                    raise InvalidMessage("Number out of range")
            elif kind is str:
                continue
            elif depth == MAX_DEPTH:
                raise InvalidMessage("Nested too deeply")
            elif kind is dict:
                try:
                    "".join(item)  # the cheapest way to see that all keys are strings
                except TypeError as error:
                    raise InvalidMessage("Keys must be strings") from error
                below += item.values()
            else:
                below += item
        if not below:
            break
        level = below
    return is_plain


def _base(item: Any) -> type:
    for kind in (str, int, float, list, tuple, dict):
        if isinstance(item, kind):
            return kind
    raise InvalidMessage(f"{type(item).__name__} is not a JSON value")


def _plain(value: Any) -> Any:
    """Copy a verified value with every subclass replaced by its base type. The recursion's depth is verified."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, dict):
        return {str.__str__(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value]


def _refuse_ext(code: int, data: bytes) -> None:
    raise ValueError("ext")  # becomes InvalidMessage in decode_msgpack


def _scan_msgpack(data: bytes) -> None:
    """Refuse data that nests too deeply or ends too early, before the library allocates memory for it.

    64 KiB of headers that each declare 10,000 items would make the library allocate 80 MB before it
    notices the missing end. Up to MAX_DEPTH such headers skip this scan: they allocate 2.5 MB for a moment.
    """
    reader = msgpack.Unpacker(max_array_len=MAX_VALUES, max_map_len=MAX_VALUES)
    reader.feed(data)
    to_come = [1]  # items still expected, per open level
    seen = 0
    while to_come:
        if to_come[-1] == 0:
            to_come.pop()
            continue
        to_come[-1] -= 1
        seen += 1
        at = reader.tell()
        if at >= len(data):
            raise InvalidMessage("Malformed MessagePack")
        if data[at] in _ARRAYS:
            to_come.append(reader.read_array_header())
        elif data[at] in _MAPS:
            to_come.append(2 * reader.read_map_header())
        else:
            reader.skip()
        if len(to_come) > MAX_DEPTH + 1:
            raise InvalidMessage("Nested too deeply")
        if seen > 2 * MAX_VALUES:  # keys count here; `_verify` counts exactly
            raise InvalidMessage("Too many values")
