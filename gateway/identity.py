"""Identities as texts: everything that names a client (rosters, names, revocations, keys) uses this one text.

A text stands for itself; an integer N is `~N`. So the users 7 and "7" of two issuers, or of two kinds of token, are
never the same client. A text that looks like an integer's (`~7`) is no identity.
"""

import re
from typing import Final

__all__ = ["IDENTITY_MAX_BYTES", "identity_name", "identity_text", "stated_identity"]

IDENTITY_MAX_BYTES: Final = 255
_OF_INTEGER: Final = re.compile(r"~-?[0-9]+")


def identity_text(value: object) -> str:
    """Give the text of an identity that a client proved: a text of 1 to 255 printable bytes, or an integer.

    Raises ValueError: it is neither, or a text of the form that integers have.
    """
    if isinstance(value, str) and _OF_INTEGER.fullmatch(value):
        raise ValueError("a text like ~7 stands for the integer 7")
    return identity_name(value)


def identity_name(value: object) -> str:
    """As `identity_text`, for who names a client that exists: the text of an integer is taken too."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**250:
        return f"~{value}"
    if isinstance(value, str) and value.isprintable():  # also: no lone surrogates
        if 0 < len(value.encode()) <= IDENTITY_MAX_BYTES:
            return value
    raise ValueError(f"an identity is a text of 1 to {IDENTITY_MAX_BYTES} bytes without control characters, or an int")


def stated_identity(value: object) -> str | None:
    """Check what `connection.identity` holds before it is written anywhere. Raises TypeError: a service set no text."""
    if value is None or isinstance(value, str):
        return value
    raise TypeError(
        f"connection.identity is {type(value).__name__}, not a text or None: "
        "set connection.identity = identity_text(user_id), from gateway"
    )
