"""Patterns of channel names, with placeholders for their owners. Pure.

    Pattern("chat:*")                       `*` matches any run of characters, including none
    Pattern("user:{identity}")              a placeholder matches one segment: characters other than `:` `.` `/`
    Pattern("shop:{claims.shops}:orders")   the clients whose claim `shops` contains the segment own the channel

Rules:
- Nothing else is special. A pattern is compared with the channel's name as `codec.channel_name` returns it, character
  by character: Unicode is not normalized.
- Placeholders come before the first asterisk, and a separator or the end follows each. So a name matches in one way.
- Matching takes linear time in the length of the name: clients choose names.
"""

import re
from functools import lru_cache
from typing import Final

__all__ = ["SEPARATORS", "Pattern", "pattern_of"]

SEPARATORS: Final = ":./"
_SEGMENT: Final = re.compile(r"[^:./]+")
_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z0-9_.-]+)\}")  # a JSON object has a quote after its brace
_SOURCE: Final = re.compile(r"identity|claims(?:\.[A-Za-z0-9_-]+)+")


class Pattern:
    """A pattern in its parts. Raises ValueError: a placeholder is wrong; the text has the correction.

    heads: the literal before each placeholder. sources: of each placeholder, `("identity",)` or `("claims", NAME,
    ...)`. parts: the literals between the asterisks, after the last placeholder.
    """

    __slots__ = ("heads", "parts", "sources", "text")

    def __init__(self, text: str) -> None:
        heads: list[str] = []
        sources: list[tuple[str, ...]] = []
        at = 0
        for found in _PLACEHOLDER.finditer(text):
            source, head, following = found.group(1), text[at : found.start()], text[found.end() : found.end() + 1]
            if not _SOURCE.fullmatch(source):
                raise ValueError(f"{{{source}}} is unknown; write {{identity}}, or {{claims.NAME}}")
            if "*" in head:
                raise ValueError(f"{{{source}}} follows an asterisk; write the placeholders first")
            if following not in SEPARATORS:
                raise ValueError(
                    f"{{{source}}} must end at one of {' '.join(SEPARATORS)}, or at the end of the pattern"
                )
            if heads and not head:
                raise ValueError(f"{{{source}}} follows another placeholder; write a separator between them")
            heads.append(head)
            sources.append(tuple(source.split(".")))
            at = found.end()
        self.text = text
        self.heads = tuple(heads)
        self.sources = tuple(sources)
        self.parts = text[at:].split("*")

    @property
    def first(self) -> str:
        """The literal with which every name that matches begins."""
        return self.heads[0] if self.heads else self.parts[0]

    def matches(self, name: str) -> bool:
        """Return True if a channel's name matches."""
        return self.segments(name) is not None

    def segments(self, name: str) -> tuple[str, ...] | None:
        """Return what the placeholders match in a name, in their order; None = the name does not match."""
        if not self.heads:
            return () if _matches(self.parts, name, 0) else None
        at = 0
        found: list[str] = []
        for head in self.heads:
            segment = _SEGMENT.match(name, at + len(head)) if name.startswith(head, at) else None
            if segment is None:
                return None
            found.append(segment.group())
            at = segment.end()
        return tuple(found) if _matches(self.parts, name, at) else None


@lru_cache(maxsize=4096)
def pattern_of(text: str) -> Pattern:
    """Return the pattern of a text, parsed once. Raises ValueError, as `Pattern`."""
    return Pattern(text)


def _matches(parts: list[str], name: str, start: int) -> bool:
    """Return True if the name, from `start` on, consists of these parts with any characters between them."""
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return len(name) - start == len(first) and name.endswith(first)
    if len(name) - start < len(first) + len(last) or not (name.startswith(first, start) and name.endswith(last)):
        return False
    at, end = start + len(first), len(name) - len(last)
    for part in parts[1:-1]:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True
