"""The text form of identities, used everywhere a client is named (rosters, names, revocations, keys).

A string is its own text; the text of an integer N is `~N`. So the users 7 and "7" of two issuers, or of two kinds of
token, are never the same client. A string in the form of an integer's text (`~7`) is not a valid identity.
"""

import re
from typing import Final

__all__ = ["IDENTITY_MAX_BYTES", "identity_name", "identity_text", "stated_identity"]

IDENTITY_MAX_BYTES: Final = 255
_OF_INTEGER: Final = re.compile(r"~-?[0-9]+")


def identity_text(value: object) -> str:
    """Return the text of an authenticated identity: a string of 1 to 255 printable bytes, or an integer.

    Raises ValueError: neither, or a string in the form that integers have.
    """
    if isinstance(value, str) and _OF_INTEGER.fullmatch(value):
        raise ValueError("a text like ~7 is reserved for the integer 7")
    return identity_name(value)


def identity_name(value: object) -> str:
    """As `identity_text`, for a reference to an existing client: also accepts the text of an integer."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**250:
        return f"~{value}"
    if isinstance(value, str) and value.isprintable():  # excludes lone surrogates too
        if 0 < len(value.encode()) <= IDENTITY_MAX_BYTES:
            return value
    raise ValueError(f"an identity is a text of 1 to {IDENTITY_MAX_BYTES} bytes without control characters, or an int")


def stated_identity(value: object) -> str | None:
    """Check the value of `connection.identity` before it is written anywhere. Raises TypeError: not a string."""
    if value is None or isinstance(value, str):
        return value
    raise TypeError(
        f"connection.identity is {type(value).__name__}, not a text or None: "
        "set connection.identity = identity_text(user_id), from gateway"
    )
