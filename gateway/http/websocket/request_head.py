"""Reads the head of a usual WebSocket handshake. It leaves every other request to aiohttp.

Rules:
- It reads a part of what aiohttp accepts: a whole head in one read, of plain ASCII, each header once and on one line,
  and none that announces a body or asks for a response before 101. Anything else returns None.
- So it decides nothing: a request that it does not read is answered by aiohttp, with the same bytes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

__all__ = ["Fields", "read_head"]

HEAD_MAX_BYTES: Final = 8_000  # below aiohttp's limit of one line, 8,190
FIELDS_MAX: Final = 100  # below aiohttp's limit, 128

# RFC 9112 3 and 5; of target and values only the characters that need no second look
_HEAD: Final = re.compile(
    rb"GET (/[\w!$%&'()*+,./:;=?@~-]*) HTTP/1\.1\r\n((?:[\w!#$%&'*+.^`|~-]+:[ -~]*\r\n)+)\r\n", re.ASCII
)
_OTHERS: Final = frozenset(  # what they ask for is aiohttp's to answer
    ("content-encoding", "content-length", "expect", "sec-websocket-key1", "te", "trailer", "transfer-encoding")
)

_Default = TypeVar("_Default")


class Fields:
    """Header fields by case-insensitive name, each of which occurs once. See `Headers`."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values  # names in lower case

    def get(self, name: str, default: str, /) -> str:
        """Return the value."""
        return self._values.get(name.lower(), default)

    def getall(self, name: str, default: _Default, /) -> Sequence[str] | _Default:
        """Return the value as a sequence of one."""
        value = self._values.get(name.lower())
        return default if value is None else (value,)


def read_head(data: bytes, path: str) -> tuple[Fields, int] | None:
    """Read a handshake for this path. Returns its fields and the size of the head; None: aiohttp must read it."""
    found = _HEAD.match(data, 0, HEAD_MAX_BYTES)
    if found is None or found[1].partition(b"?")[0] != path.encode():
        return None
    if found[2].count(b"\r\n") > FIELDS_MAX:
        return None
    lines = found[2].decode("ascii").split("\r\n")
    lines.pop()
    values = {}
    for line in lines:
        name, _, value = line.partition(":")
        values[name.lower()] = value.strip(" ")
    if len(values) < len(lines) or "host" not in values or not _OTHERS.isdisjoint(values):
        return None
    # otherwise bytes after the head are another request
    if values.get("upgrade", "").lower() != "websocket" or "upgrade" not in _tokens(values.get("connection", "")):
        return None
    return Fields(values), found.end()


def _tokens(value: str) -> list[str]:
    return [token.strip(" ") for token in value.lower().split(",")]
