"""Secrets in the settings: checks that they are hard to guess and contain no invisible characters.

The text of each ValueError continues a sentence that begins with the setting's name; it never quotes the value.
"""

import math
import unicodedata
from collections import Counter
from itertools import pairwise
from typing import Final

__all__ = [
    "HOW_TO_MAKE",
    "check_strength",
    "check_visible",
    "parse_signing_secret",
    "without_file_marks",
]

STRENGTH_MIN_BITS: Final = 64  # guessing at 16,000/s for 18 million years; `openssl rand -hex 16` has 128
SECRET_MIN_BYTES: Final = 32  # RFC 7518 3.2: at least as long as the hash
HOW_TO_MAKE: Final = "make one with: openssl rand -hex 32"
_PEM: Final = "-----BEGIN "


def parse_signing_secret(value: str) -> bytes:
    """Parse a secret that signs with HMAC-SHA256."""
    secret = value.encode()
    if len(secret) < SECRET_MIN_BYTES:
        raise ValueError(f"has less than {SECRET_MIN_BYTES} bytes; {HOW_TO_MAKE}")
    if value != value.strip():
        raise ValueError("has spaces or line ends around it, which the other side's copy may lack; remove them")
    check_strength(value)
    return secret


def check_strength(text: str, *, min_bits: float = STRENGTH_MIN_BITS) -> None:
    """Refuse a secret that is easy to guess: too short, or few characters repeated.

    The measure is the entropy of the characters; of a repeated part only one copy counts. It can be too high: words
    are easier to guess than their characters suggest.
    """
    period = (text + text).find(text, 1)  # the length of the repeated part; of the whole text if nothing repeats
    part = text[:period] if period * 2 <= len(text) else text
    total = len(part)
    bits = -sum(count * math.log2(count / total) for count in Counter(part).values()) if total else 0.0
    steps = {ord(after) - ord(before) for before, after in pairwise(part)}
    if bits < min_bits or len(steps) == 1:  # abcdef... has one step
        raise ValueError(f"is too easy to guess (short, or few characters repeated); {HOW_TO_MAKE}")


def check_visible(text: str) -> None:
    """Refuse invisible characters, including spaces other than U+0020; line ends are allowed only in a PEM."""
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
    """Strip what is not part of a file's value: line ends at the end, as `$(cat FILE)` does, and a byte-order mark."""
    return text.removeprefix("\ufeff").rstrip("\r\n")
