"""The canonical form of channels (RFC 8785), and their names in Redis.

Rules:
- Two channels are the same iff their canonical forms are equal: key order does not matter, 1 and 1.0 are equal, 1
  and true are not.
- A channel's name is the string itself; for a string that starts with `~`, and for other values, it is `~` and the
  canonical form. So no two channels share a name.
- Integers that a peer with only doubles could confuse are rejected, as the gateway rejects them.
"""

import re
from json.encoder import encode_basestring as _quoted  # escapes exactly what RFC 8785 3.2.2.2 asks for
from math import isfinite
from typing import Any, Final

__all__ = ["CHANNEL_MAX_BYTES", "DEPTH_MAX", "canonical", "channel_key", "channel_name", "redis_channel"]

CHANNEL_MAX_BYTES: Final = 255  # of UTF-8, in canonical form
DEPTH_MAX: Final = 32  # nested containers

_SAFE_INTEGER = 2**53 - 1  # RFC 7493 2.2
_ES6_EXPONENT_FROM = 1e21  # ECMA-262 Number::toString writes plain digits below, an exponent from here on
_SERVICE = re.compile(r"[a-z0-9_-]+").fullmatch


def canonical(value: Any) -> str:
    """Return the canonical JSON text of a value: the same for all equal values.

    Raises ValueError: not a JSON value, nested deeper than 32, a lone surrogate, an integer beyond +-(2^53 - 1).
    """
    text = _canonical(value, 0)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("channel: a lone surrogate in a string") from error
    return text


def channel_name(channel: Any) -> str:
    """Return a channel's name in Redis, without `SERVICE:`. Raises ValueError: as `canonical`; above 255 bytes."""
    text = canonical(channel)
    if len(text.encode()) > CHANNEL_MAX_BYTES:
        raise ValueError(f"channel: longer than {CHANNEL_MAX_BYTES} bytes in canonical form")
    if isinstance(channel, str) and not channel.startswith("~"):
        return str.__str__(channel)
    return "~" + text


def channel_key(service: str, channel: Any) -> str:
    """Return SERVICE:NAME of a channel. Raises ValueError: as `channel_name`; the service name is not valid."""
    if _SERVICE(service) is None:
        raise ValueError("service: a name has a-z, 0-9, _ and - only")
    return f"{service}:{channel_name(channel)}"


def redis_channel(prefix: str, service: str, channel: Any) -> str:
    """Return the Redis channel: PREFIX:{SERVICE:NAME}. Raises ValueError: as `channel_key`."""
    return f"{prefix}:{{{channel_key(service, channel)}}}"


def _canonical(value: Any, depth: int) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if value is None:
        return "null"
    if isinstance(value, bool):  # before int: bool is a subclass of it
        return "true" if value else "false"
    if isinstance(value, int):
        if abs(value) > _SAFE_INTEGER:
            raise ValueError("channel: an integer beyond 2^53 - 1")
        return int.__repr__(value)
    if isinstance(value, float):
        if _SAFE_INTEGER < abs(value) < _ES6_EXPONENT_FROM:  # would read back as the integer refused above
            raise ValueError("channel: an integer beyond 2^53 - 1")
        return _es6_number(value)
    if depth == DEPTH_MAX:
        raise ValueError("channel: nested too deeply")
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([_canonical(item, depth + 1) for item in value]) + "]"
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("channel: a key that is no string")
        members = sorted(value.items(), key=_utf16_order)
        return "{" + ",".join([f"{_quoted(key)}:{_canonical(item, depth + 1)}" for key, item in members]) + "}"
    raise ValueError(f"channel: {type(value).__name__} is not a JSON value")


def _es6_number(number: float) -> str:
    """Write a double as ECMAScript does (RFC 8785 3.2.2.3)."""
    if not isfinite(number):
        raise ValueError("channel: a number that is not finite")
    if number == 0:
        return "0"  # also -0.0
    # repr() has the same shortest digits; only where it puts the point and when it takes an exponent differ.
    mantissa, _, exponent = repr(abs(float(number))).partition("e")
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


def _utf16_order(member: tuple[str, Any]) -> bytes:
    # RFC 8785 3.2.3 sorts by UTF-16 code units. Surrogates are refused later.
    return member[0].encode("utf-16-be", "surrogatepass")
