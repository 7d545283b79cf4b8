"""Unwritten: recognizes errors of Redis after which a command has certainly changed nothing. Pure."""

from typing import Final

__all__ = ["is_undone"]

_BEFORE: Final = (
    "OOM",
    "NOREPLICAS",
    "MISCONF",
    "READONLY",
    "NOPERM",
    "NOAUTH",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "NOSCRIPT",
)
_WITHIN: Final = " script: "  # contained in an error from inside a script, which may have written before it


def is_undone(text: str) -> bool:
    """True if Redis rejected a command before executing it. text: of the error."""
    return text.startswith(_BEFORE) and _WITHIN not in text
