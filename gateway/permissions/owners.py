"""Owners: the clients whose identity and claims have what the placeholders of a pattern match. Pure.

Rules:
- Values are compared character by character, without Unicode normalization.
- A value with a separator (`:` `.` `/`) owns nothing, because it cannot be one segment.
- A value that begins with `~` owns nothing, except the identity of an integer (`~7`): names of channels that are not
  texts begin with `~`.
- A claim is a text, an integer (compared as decimal digits), or a list of these. Other values own nothing.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from snorky.gateway.config.rules.patterns import Pattern

__all__ = ["owns"]

_INTEGER_IDENTITY: Final = re.compile(r"~-?[0-9]+")


def owns(pattern: Pattern, name: str, identity: str | None, claims: Mapping[str, Any]) -> bool:
    """Return True if a client owns a channel by a pattern with placeholders. name: from `codec.channel_name`."""
    segments = pattern.segments(name) if pattern.sources and identity is not None else None
    if segments is None:
        return False
    return all(
        _has(source, segment, identity, claims) for source, segment in zip(pattern.sources, segments, strict=True)
    )


def _has(source: Sequence[str], segment: str, identity: str | None, claims: Mapping[str, Any]) -> bool:
    if segment.startswith("~"):
        return source == ("identity",) and segment == identity and _INTEGER_IDENTITY.fullmatch(segment) is not None
    if source == ("identity",):
        return segment == identity
    value: Any = claims
    for name in source[1:]:
        value = value.get(name) if isinstance(value, Mapping) else None
    values = value if isinstance(value, list | tuple) else (value,)
    return any(_text(each) == segment for each in values)


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
