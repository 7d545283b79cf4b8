"""Allowed origins (RFC 6454): parses them from the settings, and matches a browser's Origin header.

    https://app.example.org     exactly this origin
    https://*.example.org       every name below example.org, at any depth; not example.org itself
    capacitor://localhost       another scheme: apps, chrome-extension://ID, moz-extension://UUID
    null                        pages without an origin (file://, sandboxed frames), which any site can create
    *                           every page

Rules:
- An entry is stored in the form that browsers send, or refused: an entry that can never match is a mistake.
- `*` replaces only whole labels at the left, before two labels or more, so that it never covers a registry's
  names (`*.org`); it cannot replace a scheme or a port.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

__all__ = ["Origins", "parse_origins"]

_PORTS: Final = {"http": 80, "https": 443}
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
_NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")
_LABELS: Final = r"(?:[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\.)+"
_WRITE: Final = 'write scheme and host, no path: "https://app.example.org", or "https://*.example.org" for all below it'


class Origins(frozenset[str]):
    """The allowed origins, from `parse_origins`. `in` also matches origins that a pattern covers."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._patterns = [
            re.compile(re.escape(scheme) + "://" + _LABELS + re.escape(rest))
            for scheme, rest in (each.split("://*.") for each in self if "://*." in each)
        ]

    def __contains__(self, origin: object) -> bool:
        if super().__contains__(origin):
            return not isinstance(origin, str) or "://*" not in origin  # a pattern itself is not an origin
        return isinstance(origin, str) and any(each.fullmatch(origin) for each in self._patterns)


def parse_origins(value: list[str]) -> tuple[str, ...]:
    """Convert origins to the form that browsers send. Raises ValueError with what to write."""
    return tuple(_origin(text) for text in value)


def _origin(text: str) -> str:
    if text in ("*", "null"):
        return text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"has an entry that is no origin; {_WRITE}") from None
    scheme, host = parts.scheme, parts.hostname or ""
    if scheme == "file":
        raise ValueError('has file://, which browsers send as null; write "null"')
    if not _SCHEME.fullmatch(scheme) or not host or "@" in parts.netloc or text.count("/") != 2 or port == 0:
        raise ValueError(f"has an entry that is no origin; {_WRITE}")
    if any(mark in text for mark in "?#\\") or parts.netloc.endswith(":"):
        raise ValueError(f"has an entry that is no origin; {_WRITE}")
    if not host.isascii():
        raise ValueError('has a host that browsers send in ASCII form; write it in that form: "https://xn--..."')
    is_default = port is None or port == _PORTS.get(scheme)
    return f"{scheme}://{_host(host)}" if is_default else f"{scheme}://{_host(host)}:{port}"


def _host(host: str) -> str:
    if ":" in host:
        try:
            return f"[{ipaddress.IPv6Address(host).compressed}]"
        except ValueError:
            raise ValueError(f"has an entry that is no origin; {_WRITE}") from None
    name = host.removeprefix("*.")
    if not _NAME.fullmatch(name):
        raise ValueError(f"has an entry with a host that browsers never send; {_WRITE}")
    if name != host and name != "localhost" and ("." not in name.rstrip(".") or _is_address(name)):
        raise ValueError('has a * that covers a whole registry or an address; write your name: "https://*.example.org"')
    return host


def _is_address(name: str) -> bool:
    return name.rpartition(".")[2].isdigit()
