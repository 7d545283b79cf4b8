"""Values that are encoded and decoded again."""

import re
from typing import Any

from snorky.gateway.protocol.codec import Encoding, decode, encode

# All error texts about a peer's bytes: nothing of the input but a position.
TEXTS = re.compile(
    r"Malformed JSON \((byte \d+|truncated)\)|Malformed MessagePack|Invalid UTF-8|Number out of range"
    r"|Nested too deeply|Too many values|bytes is not a JSON value|Keys must be strings"
)


def same(one: Any, other: Any) -> bool:
    """Equal, where 1, 1.0 and True differ, and 0.0 and -0.0."""
    return repr(one) == repr(other)


def assert_goes_round(value: Any) -> None:
    """Both encodings carry the result of one decoder unchanged."""
    for encoding in Encoding:
        assert same(decode(encode(value, encoding), encoding), value), encoding
