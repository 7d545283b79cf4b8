"""Secrets as settings hold them: strong enough, and without characters that nobody sees.

Each function raises ValueError with a text that goes on after the name of the setting and never quotes the value.
"""

import hashlib
import hmac
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Final

__all__ = ["ApiKey", "check_strength", "check_visible", "parse_api_key", "parse_api_keys", "without_file_marks"]

STRENGTH_MIN_BITS: Final = 64  # guessing at 16,000/s for 18 million years; `openssl rand -hex 16` has 128
_MAKE: Final = "make one with: openssl rand -hex 32"
_KEY_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
_PEM: Final = "-----BEGIN "


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The backend's key, known only as its SHA-256."""

    sha256: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "ApiKey":
        """Take the key itself, or `sha256:` and 64 hex digits. Raises ValueError with what to write."""
        if text.startswith("sha256:"):
            digest = text.removeprefix("sha256:")
            if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
                raise ValueError("needs 64 hex digits after sha256:; make them with: printf %s KEY | sha256sum")
            return cls(bytes.fromhex(digest))
        if not text or text != text.strip():
            raise ValueError(f"is empty or has blanks around it; {_MAKE}")
        return cls(hashlib.sha256(text.encode()).digest())

    def matches(self, presented: str) -> bool:
        """Compare in constant time with what a backend sent."""
        return hmac.compare_digest(self.sha256, hashlib.sha256(presented.encode("utf-8", "replace")).digest())


def parse_api_key(text: str) -> ApiKey:
    """Take a key of the settings: as `ApiKey.parse`, and none that can be guessed."""
    key = ApiKey.parse(text)
    if not text.startswith("sha256:"):
        check_strength(text)
    return key


def parse_api_keys(value: Mapping[str, str]) -> Mapping[str, ApiKey]:
    """Take several keys by their names; a name is what logs and metrics call the backend."""
    found: dict[str, ApiKey] = {}
    for name, text in value.items():
        if not _KEY_NAME.fullmatch(name):
            raise ValueError('has a name with other characters than a-z 0-9 _ -; write api_keys = { web = "KEY" }')
        check_visible(text)
        try:
            found[name] = parse_api_key(text)
        except ValueError as error:
            raise ValueError(f"the key {name} {error}") from None
    if not found:
        raise ValueError('has no key; write api_keys = { web = "KEY" }, or leave it out')
    return MappingProxyType(found)


def check_strength(text: str) -> None:
    """Refuse a secret that can be guessed: too short, or few characters repeated.

    Measured is the entropy of its characters, of a repetition counted once. A lower bound it is not: words count as
    more than they are worth.
    """
    period = (text + text).find(text, 1)  # of a text that is a repetition; else its length
    part = text[:period] if period * 2 <= len(text) else text
    total = len(part)
    bits = -sum(count * math.log2(count / total) for count in Counter(part).values()) if total else 0.0
    steps = {ord(after) - ord(before) for before, after in pairwise(part)}
    if bits < STRENGTH_MIN_BITS or len(steps) == 1:  # abcdef... has one step
        raise ValueError(f"is too easy to guess (short, or few characters repeated); {_MAKE}")


def check_visible(text: str) -> None:
    """Refuse characters that nobody sees; line ends only in a PEM. A blank around the value is one of them."""
    is_pem = text.startswith(_PEM)
    for position, character in enumerate(text, start=1):
        if is_pem and character in "\r\n":
            continue
        category = unicodedata.category(character)
        if category in ("Cc", "Cf", "Cs", "Zl", "Zp") or (category == "Zs" and character != " "):
            raise ValueError(
                f"has an invisible character, U+{ord(character):04X}, at position {position}; "
                "write the value again by hand, or make a new one"
            )


def without_file_marks(text: str) -> str:
    """Give a file's text as `$(cat FILE)` does: without line ends at its end; and without a byte-order mark."""
    return text.removeprefix("\ufeff").rstrip("\r\n")
