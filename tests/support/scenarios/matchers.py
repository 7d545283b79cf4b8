"""Matchers for values that differ each time: points in time, handles, seconds, anything."""

from datetime import datetime
from typing import Any

__all__ = ["ANY", "SECONDS", "TIME", "Handle", "is_same"]


class _Time:
    """Equals any text that is a point in time, with an offset. ISO 8601."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and datetime.fromisoformat(other).utcoffset() is not None

    __hash__ = None  # type: ignore[assignment]  # never a key

    def __repr__(self) -> str:
        return "TIME"


TIME = _Time()


class _Seconds:
    """Equals the remaining seconds of a token that lives a minute at most."""

    def __eq__(self, other: object) -> bool:
        return type(other) is int and 0 <= other <= 60

    __hash__ = None  # type: ignore[assignment]  # never a key

    def __repr__(self) -> str:
        return "SECONDS"


class _Any:
    """Equals any value but null."""

    def __eq__(self, other: object) -> bool:
        return other is not None

    __hash__ = None  # type: ignore[assignment]  # never a key

    def __repr__(self) -> str:
        return "ANY"


SECONDS = _Seconds()
ANY = _Any()


class Handle:
    """Equals one integer: the first that it is compared with; no other handle of the document may have it."""

    def __init__(self, others: "set[int]") -> None:
        self._others = others
        self._value: int | None = None

    def __eq__(self, other: object) -> bool:
        if type(other) is not int:
            return False
        if self._value is None and other not in self._others:
            self._others.add(other)
            self._value = other
        return self._value == other

    __hash__ = None  # type: ignore[assignment]  # never a key

    def __repr__(self) -> str:
        return f"HANDLE({self._value})"


def is_same(expected: Any, actual: Any) -> bool:
    """Compare as JSON does: true is not 1, but 1.0 is."""
    if isinstance(expected, _Time | Handle):
        return bool(expected == actual)
    if isinstance(expected, dict):
        is_alike = isinstance(actual, dict) and expected.keys() == actual.keys()
        return is_alike and all(is_same(value, actual[key]) for key, value in expected.items())
    if isinstance(expected, list | tuple):
        is_alike = isinstance(actual, list) and len(expected) == len(actual)
        return is_alike and all(map(is_same, expected, actual))
    return isinstance(expected, bool) == isinstance(actual, bool) and bool(expected == actual)
