"""Encodes values as the strict JSON that nodes accept.

A node drops a message that breaks one of these rules, and no subscriber receives it; so they are checked before
sending: UTF-8 without lone surrogates, string keys, finite numbers, integers from -2^63 to 2^64-1, containers nested at
most 32 deep, at most 10,000 values.
"""

import json
from math import isfinite
from typing import Any, Final

from snorky.client.canonical import DEPTH_MAX

__all__ = ["VALUES_MAX", "encode"]

VALUES_MAX: Final = 10_000  # containers count, keys do not
_INTEGER_MIN: Final = -(2**63)
_INTEGER_MAX: Final = 2**64 - 1

_write = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode


def encode(value: Any) -> bytes:
    """Encode a value as compact UTF-8 JSON. Raises ValueError: it breaks a rule; TypeError: not JSON, a date say."""
    _verify(value)
    try:
        return _write(value).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a lone surrogate in a string") from error


def _verify(value: Any) -> None:
    """Check all values, level by level, so that deep nesting and cycles cause no recursion."""
    level = [value]
    seen = 0
    for depth in range(DEPTH_MAX + 1):
        seen += len(level)
        if seen > VALUES_MAX:
            raise ValueError(f"more than {VALUES_MAX} values in a message")
        below: list[Any] = []
        for item in level:
            if item is None or isinstance(item, (str, bool)):
                continue
            if isinstance(item, int):
                if not _INTEGER_MIN <= item <= _INTEGER_MAX:
                    raise ValueError("an integer beyond 64 bits")
            elif isinstance(item, float):
                if not isfinite(item):
                    raise ValueError("a number that is not finite")
            elif not isinstance(item, (dict, list, tuple)):
                name = type(item).__name__
                raise TypeError(f"{name} is not a JSON value: give a date as .isoformat(), a Decimal or UUID as str()")
            elif depth == DEPTH_MAX:
                raise ValueError(f"more than {DEPTH_MAX} arrays and objects inside of each other")
            elif isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    raise TypeError("a key that is no string")
                below += item.values()
            else:
                below += item
        if not below:
            return
        level = below
