"""Unwritten: which errors of Redis say that a command did nothing at all. Pure."""

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
_WITHIN: Final = " script: "  # Redis says so behind an error that a script met: it may have written before


def is_undone(text: str) -> bool:
    """True if Redis refused a command before it began. text: of the error."""
    return text.startswith(_BEFORE) and _WITHIN not in text
