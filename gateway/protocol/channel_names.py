"""The canonical form of channels (RFC 8785), and their names in Redis.

Rules:
- Two channels are the same iff their canonical forms are equal: key order does not matter, 1 and 1.0
  are equal, 1 and true are not.
- The name of a string is the string itself, unless it starts with `~`. Every other name is `~` and the canonical form.
  So `channel_of` inverts `channel_name`, and no two channels share a name.
- Values that a peer with only doubles could confuse are refused: lone surrogates have no UTF-8, and
  integers beyond +-(2^53 - 1) round to each other.

`tests/vectors/canonical.json` and `redis_names.json` hold test vectors for clients in other languages.
"""

from json.encoder import encode_basestring as _quoted  # escapes exactly what RFC 8785 3.2.2.2 asks for
from math import isfinite
from typing import Any, TypeAlias

import msgspec

from snorky.gateway.errors import InvalidChannel

__all__ = [
    "CHANNEL_MAX_BYTES",
    "MAX_DEPTH",
    "Json",
    "canonical",
    "channel_key",
    "channel_name",
    "channel_of",
    "es6_number",
]

# The content of containers is checked on input (codec), not by this type.
Json: TypeAlias = bool | int | float | str | list[Any] | dict[str, Any] | None

MAX_DEPTH = 32  # nested containers; far below the recursion limit of every parser in use
CHANNEL_MAX_BYTES = 255  # of UTF-8 in canonical form: PROTOCOL

_SAFE_INTEGER = 2**53 - 1  # RFC 7493 2.2: beyond it, a reader that has only doubles confuses neighbours
_ES6_EXPONENT_FROM = 1e21  # ECMA-262 Number::toString writes plain digits below, an exponent from here on
_SURELY_SHORT_CHARS = (CHANNEL_MAX_BYTES - 2) // 6  # a character takes 6 bytes at most (\u001f), the quotes 2


def es6_number(number: float) -> str:
    """Write a double as ECMAScript does: the shortest digits that read back as the same number.

    Raises InvalidChannel: NaN or infinite. Source: RFC 8785 3.2.2.3, ECMA-262 Number::toString.
    """
    if not isfinite(number):
        raise InvalidChannel("Number is not finite")
    if number == 0:
        return "0"  # also -0.0
    # repr() has the same shortest digits; it differs only in where it puts the point and when it uses an exponent.
    mantissa, _, exponent = repr(abs(number)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        text = digits + "0" * (point - len(digits))
    elif 0 < point <= 21:
        text = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        text = digits[0] + ("." + digits[1:] if len(digits) > 1 else "") + f"e{point - 1:+d}"
    return "-" + text if number < 0 else text


def canonical(value: Json) -> str:
    """Encode a value in the form that all equal values share (RFC 8785).

    value: as `codec.decode` returns it; tuples and subclasses of str, int and float are treated as their
    base types. The length is not limited here: see `channel_name`.
    Raises InvalidChannel: not a JSON value, nested deeper than MAX_DEPTH, a lone surrogate, or an
    integer beyond +-(2^53 - 1), also when written as a double that ECMAScript prints without exponent.
    """
    text = _canonical(value, 0)
    if not text.isascii():
        _require_utf8(text)
    return text


def channel_name(channel: Json) -> str:
    """Return a channel's name, which its Redis channel contains between the braces after `SERVICE:`.

    The name of a string is the string itself; of any other value, and of a string that starts with `~`, it is
    `~` and the canonical form. Raises InvalidChannel: as `canonical`, or more than CHANNEL_MAX_BYTES of UTF-8 in
    canonical form (which for a string includes its quotes and escapes).
    """
    if type(channel) is str and len(channel) <= _SURELY_SHORT_CHARS and channel.isascii() and channel[:1] != "~":
        return channel  # the fast path, for nearly all channels
    text = canonical(channel)
    if len(text) > CHANNEL_MAX_BYTES or len(text.encode()) > CHANNEL_MAX_BYTES:
        raise InvalidChannel(f"Channel is longer than {CHANNEL_MAX_BYTES} bytes in canonical form")
    if isinstance(channel, str) and not channel.startswith("~"):
        return str.__str__(channel)
    return "~" + text


def channel_key(service: str, channel: Json) -> str:
    """Return a channel's key inside the node: `SERVICE:NAME`, unique since a service's name has no colon.

    Raises InvalidChannel: as `channel_name`.
    """
    return f"{service}:{channel_name(channel)}"


def channel_of(name: str) -> Json:
    """Return the channel that has this name: the inverse of `channel_name`.

    Raises InvalidChannel: not the name of any channel (`~` without canonical JSON, or too long).
    """
    channel: Json = name
    if name.startswith("~"):
        if len(name) > 1 + CHANNEL_MAX_BYTES:
            raise InvalidChannel("Not the name of a channel")
        try:
            channel = msgspec.json.decode(name[1:].encode())
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InvalidChannel("Not the name of a channel") from error
    if channel_name(channel) != name:
        raise InvalidChannel("Not the name of a channel")
    return channel


def _canonical(value: Json, depth: int) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if value is None:
        return "null"
    if isinstance(value, bool):  # before int, whose subclass it is
        return "true" if value else "false"
    if isinstance(value, int):
        if abs(value) > _SAFE_INTEGER:
            raise InvalidChannel("Integer in a channel is beyond 2^53 - 1")
        return int.__repr__(value)
    if isinstance(value, float):
        if _SAFE_INTEGER < abs(value) < _ES6_EXPONENT_FROM:  # would read back as the integer refused above
            raise InvalidChannel("Integer in a channel is beyond 2^53 - 1")
        return es6_number(value)
    if depth == MAX_DEPTH:
        raise InvalidChannel("Channel is nested too deeply")
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([_canonical(item, depth + 1) for item in value]) + "]"
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise InvalidChannel("Channel has a key that is no string")
        members = sorted(value.items(), key=_utf16_order)
        return "{" + ",".join([f"{_quoted(key)}:{_canonical(item, depth + 1)}" for key, item in members]) + "}"
    raise InvalidChannel(f"{type(value).__name__} is not a JSON value")


def _utf16_order(member: tuple[str, Any]) -> bytes:
    # RFC 8785 3.2.3 sorts by UTF-16 code units: U+1F600 comes before U+FB33. Surrogates are refused later.
    return member[0].encode("utf-16-be", "surrogatepass")


def _require_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidChannel("Lone surrogate in a string") from error
