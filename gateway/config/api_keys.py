"""ApiKey: a key of a backend, and the services that it may call; `[private.api_keys]` in the file and the environment.

    [private.api_keys]
    web = "KEY"                        # all services
    [private.api_keys.jobs]
    key = "KEY"
    services = ["pubsub_backend"]

Rules:
- A key is written as a text, or as `key` in a table of its own. The environment overrides the two parts separately:
  SNORKY_PRIVATE__API_KEYS__JOBS replaces the key, and its services remain those of the file.
- Names are unique in logs: no key has the name of the unnamed one, and no two names have the same key.
- The text of each ValueError continues a sentence that begins with the setting's name; it never quotes a key.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from snorky.gateway.config.secrets import HOW_TO_MAKE, check_strength, check_visible
from snorky.gateway.config.sources import API_KEYS, Key, Written

__all__ = ["NO_KEY", "UNNAMED_KEY", "ApiKey", "KeyTable", "gather_api_keys", "parse_api_key", "parse_api_keys"]

NO_KEY: Final = "none"  # the name of the sender if no key is set
UNNAMED_KEY: Final = "api_key"  # the name of `[private] api_key`
KeyTable = dict[str, str | dict[str, Any]]  # by the key's name: its text, or a table of its parts

_PARTS: Final = ("key", "services")
_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A backend's API key, stored only as its SHA-256. services: that it may call; None = all."""

    sha256: bytes = field(repr=False)
    services: frozenset[str] | None = None

    @classmethod
    def parse(cls, text: str) -> "ApiKey":
        """Parse the key itself, or `sha256:` and 64 hex digits. Raises ValueError with what to write."""
        if text.startswith("sha256:"):
            digest = text.removeprefix("sha256:")
            if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
                raise ValueError("needs 64 hex digits after sha256:; make them with: printf %s KEY | sha256sum")
            return cls(bytes.fromhex(digest))
        if not text or text != text.strip():
            raise ValueError(f"is empty or has spaces around it; {HOW_TO_MAKE}")
        return cls(hashlib.sha256(text.encode()).digest())

    def matches(self, presented: str) -> bool:
        """Compare with a key that a backend sent, in constant time."""
        return hmac.compare_digest(self.sha256, hashlib.sha256(presented.encode("utf-8", "replace")).digest())

    def permits(self, service: str) -> bool:
        """Return True if a backend with this key may call a service."""
        return self.services is None or service in self.services


def parse_api_key(text: str) -> ApiKey:
    """Parse a key as `ApiKey.parse` does, and refuse one that is easy to guess."""
    key = ApiKey.parse(text)
    if not text.startswith("sha256:"):
        check_strength(text)
    return key


def parse_api_keys(value: KeyTable) -> Mapping[str, ApiKey]:
    """Parse several named keys; logs and metrics identify a backend by the name of its key."""
    found: dict[str, ApiKey] = {}
    for name, written in value.items():
        if not _NAME.fullmatch(name):
            raise ValueError('has a name with other characters than a-z 0-9 _ -; write api_keys = { web = "KEY" }')
        if name in (NO_KEY, UNNAMED_KEY):
            raise ValueError(f"has a key named {name}, as logs name requests without a named key; give it another name")
        try:
            key = _parse_parts({"key": written} if isinstance(written, str) else written)
        except ValueError as error:
            raise ValueError(f"the key {name} {error}") from None
        for other, known in found.items():
            if known.sha256 == key.sha256:
                raise ValueError(f"the keys {other} and {name} are the same; {HOW_TO_MAKE}")
        found[name] = key
    if not found:
        raise ValueError('has no key; write api_keys = { web = "KEY" }, or leave it out')
    return MappingProxyType(found)


def _parse_parts(parts: Mapping[str, Any]) -> ApiKey:
    if unknown := [part for part in parts if part not in _PARTS]:
        raise ValueError(f"has the unknown part {unknown[0]}; known are {' and '.join(_PARTS)}")
    text, services = parts.get("key"), parts.get("services")
    if not isinstance(text, str):
        raise ValueError('needs a text as key; write key = "KEY"')
    check_visible(text)
    key = parse_api_key(text)
    if "services" not in parts:  # `null` is a mistake, and must not permit all
        return key
    if not (isinstance(services, list) and services and all(isinstance(each, str) for each in services)):
        raise ValueError('needs names as services; write services = ["pubsub_backend"], or leave it out to permit all')
    return replace(key, services=frozenset(services))


def gather_api_keys(written: dict[Key, Written], problems: list[str]) -> None:
    """Merge all values below `[private.api_keys]` into one value of the shape KeyTable."""
    parts = {key: written.pop(key) for key in list(written) if key[:2] == API_KEYS and len(key) in (3, 4)}
    if not parts:
        return
    where = " and ".join(part.where for part in parts.values())
    if API_KEYS in written:
        problems.append(f"{written[API_KEYS].where} and {where} are both set; unset one of them")
        return
    table: dict[str, object] = {}
    for name in dict.fromkeys(key[2] for key in parts):
        text = parts.pop((*API_KEYS, name), None)
        own = {key[3]: part for key, part in parts.items() if key[2] == name}
        if text is not None and not own:
            table[name] = text.value
            continue
        if text is not None:
            other = own.get("key")
            if other is not None and other.is_text == text.is_text:
                problems.append(f"{text.where} and {other.where} are both set; unset one of them")
            elif other is None or text.is_text:
                own["key"] = text
        # only a key is text by itself: one of digits would be decoded as a number
        table[name] = {part: each.value if part == "key" else each.guessed() for part, each in own.items()}
    written[API_KEYS] = Written(table, where)
