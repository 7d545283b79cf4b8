"""Library text: makes the Lua source of the library `snorky`, and classifies a library found in Redis. Pure.

Rules:
- One source: the library's body is `scripts/publish.lua`, which nodes also use to publish.
- Functions are global to a server, for all prefixes and databases. So the library contains no rules: the function reads
  them from a key of its caller's prefix and database. Only in a Cluster, where there is one database and a function can
  read declared keys only, the library contains the rules, one line per prefix; each node keeps the others' lines.
- The header has a format and a digest of the text below it. The format counts up with each incompatible change, and a
  library of a later format is never replaced. Two nodes of one format may still have different texts (a fix): a node
  then loads its own once, at its start, and leaves the other's alone afterwards, so that they do not replace each other
  indefinitely.
- A salt in the library replaces the random bytes that a node would pass: the random numbers of Redis repeat after each
  start.
- The header also has the time of loading and the last doubt, which `snorky_library` returns: `library_instance`.
"""

import re
import secrets
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

from snorky.gateway.redis.connection.scripts import sharded
from snorky.gateway.redis.history.appender import KEEP_S, ONCE_S
from snorky.gateway.redis.history.library_instance import NO_DOUBT, Doubt
from snorky.gateway.redis.history.rule_tables import sha1_of

__all__ = ["FORMAT", "LIBRARY", "Found", "code_in", "has_kept", "judge", "lines_in", "quote", "write_library"]

LIBRARY: Final = "snorky"
# 3: no placeholders in rules; 2: no snorky_library; 1: rules of all prefixes in the library, by prefix alone
FORMAT: Final = 4
KEEPING: Final = 2  # the first format that keeps histories by the merged rules of all nodes

_FOLDER = Path(__file__).parent
_PUBLISH = (_FOLDER / "lua" / "publish.lua").read_text().partition("\n")[2]
_FUNCTION = (_FOLDER / "lua" / "library" / "snorky_publish.lua").read_text()
_LINE = re.compile(r"^\['([^'\n]+)'\]=(\"[^\"\n]*\"),$", re.MULTILINE)
_FORMAT = re.compile(r"^-- format (\d+)$", re.MULTILINE)
_BODY = re.compile(r"^-- body ([0-9a-f]{40})$", re.MULTILINE)
_END_OF_LINES: Final = "} -- of the rules\n"


class Found(Enum):
    """The kind of a library found in Redis. The values are the reasons in the metric."""

    OURS = "ours"
    SIBLING = "sibling"  # of our format, unchanged since a node loaded it, with another text
    MISSING = "missing"
    OLDER = "older"
    FOREIGN = "foreign"  # changed by hand, or not a library of the gateway
    LATER = "later"


def code_in(answer: Any) -> str | None:
    """Read the text of a library from the answer to FUNCTION LIST ... WITHCODE; None = not loaded."""
    if not answer:
        return None
    fields = answer[0]  # name, value, name, value ...; or a mapping
    named = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    return str(named[b"library_code"].decode(errors="replace"))


def judge(library: str | None) -> Found:
    """Classify a library, ignoring its rules. None = not loaded."""
    if library is None:
        return Found.MISSING
    found = _FORMAT.search(library)
    if found is None or int(found[1]) < FORMAT:
        return Found.FOREIGN if found is None else Found.OLDER
    if int(found[1]) > FORMAT:
        return Found.LATER
    head, _, body = library.partition(_END_OF_LINES)
    if not _is_unchanged(library):
        return Found.FOREIGN
    is_sharded = "\nlocal IS_SHARDED = true\n" in head
    return Found.OURS if body == _body(is_sharded=is_sharded) else Found.SIBLING


def has_kept(library: str | None) -> bool:
    """True if a library of this or an earlier format has kept histories by the merged rules of all nodes."""
    found = _FORMAT.search(library or "")
    return library is not None and found is not None and int(found[1]) >= KEEPING and _is_unchanged(library)


def lines_in(library: str | None) -> dict[str, str]:
    """Read the rules in a library that adds to the history, as written there: prefix -> quoted text."""
    if library is None or judge(library) is Found.LATER or not has_kept(library):
        return {}
    return dict(_LINE.findall(library.partition(_END_OF_LINES)[0]))


def write_library(lines: Mapping[str, str] | None, *, doubt: Doubt = NO_DOUBT, loaded_us: int = 0) -> str:
    """Make the text of a library.

    lines: the rules of all prefixes, as `lines_in` reads them; None = not for a Cluster. loaded_us: the time of Redis.
    """
    is_sharded = lines is not None
    body = _body(is_sharded=is_sharded)
    return (
        "\n".join(
            [
                f"#!lua name={LIBRARY}",
                "-- The gateway's nodes load this library; they replace changes made here.",
                f"-- format {FORMAT}",
                f"-- body {sha1_of(body)}",
                f"local SALT, LOADED_US = '{secrets.token_hex(16)}', '{loaded_us}'",
                f"local FORMAT, DOUBT_UNTIL_US, DOUBT = '{FORMAT}', '{doubt.until_us}', '{doubt.mark}'",
                f"local IS_SHARDED = {'true' if is_sharded else 'false'}",
                "local RULES = {",
                *(f"['{prefix}']={text}," for prefix, text in sorted((lines or {}).items())),
            ]
        )
        + "\n"
        + _END_OF_LINES
        + body
    )


def quote(text: str) -> str:
    """Quote a text for Lua: every byte except ASCII letters and digits is written as a number, so it is safe."""
    return (
        '"'
        + "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03d}" for byte in text.encode())
        + '"'
    )


def _is_unchanged(library: str) -> bool:
    told, (_, end, body) = _BODY.search(library), library.partition(_END_OF_LINES)
    return told is not None and bool(end) and sha1_of(body) == told[1]


def _body(*, is_sharded: bool) -> str:
    return "\n".join(
        [
            f"local KEEP_MS, ONCE_MS = '{round(KEEP_S * 1000)}', '{round(ONCE_S * 1000)}'",
            "local function publish(KEYS, ARGV)",
            (sharded(_PUBLISH.encode()).decode() if is_sharded else _PUBLISH).rstrip("\n"),
            "end",
            _FUNCTION,
        ]
    )
