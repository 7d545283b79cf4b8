"""[hooks]: URLs of the backend that a node asks before it admits a client, a subscription or a publication.

    [hooks] secret              signs each request
    [hooks.connect] url         asked in each handshake
    [hooks.subscribe] url       asked after the rules and the service's own hook have allowed it
    [hooks.publish] url         likewise

A hook without a URL is not asked.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from msgspec import Meta

from snorky.gateway.config.parsers import is_loopback, parse_backend_url
from snorky.gateway.config.secrets import parse_signing_secret

__all__ = ["HOOK_TABLES", "Hook", "Hooks", "PublishHook", "SubscribeHook"]

_SERVICE: Final = re.compile(r"[a-z0-9_-]+")


def _parse_url(value: str) -> str:
    if not value:
        return value
    return parse_backend_url(value, "its answers admit clients")


def _parse_on_failure(value: str) -> str:
    if value not in ("closed", "open"):
        raise ValueError('must be "closed" (refuse while the backend fails) or "open" (allow)')
    return value


def _parse_services(value: list[str]) -> tuple[str, ...]:
    if not value or not all(_SERVICE.fullmatch(name) for name in value):
        raise ValueError('must be names of services; write ["pubsub"]')
    return tuple(dict.fromkeys(value))


def _parsed(default: Any, wire: Any, parse: Callable[[Any], Any], *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"wire": wire, "parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """[hooks.connect], and what all hooks have."""

    url: str = _parsed("", str, _parse_url)  # "" = not asked
    timeout_s: Annotated[float, Meta(gt=0, le=30)] = 2.0  # to wait for a free request, and again for the answer
    cache_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0  # answers, yes or no; never failures. 0 = not cached
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 64  # requests at a time, per node
    queue_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 1_024  # questions that wait for one; beyond: refused
    on_failure: str = _parsed("closed", str, _parse_on_failure)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeHook(Hook):
    """[hooks.subscribe]."""

    services: tuple[str, ...] = _parsed(("pubsub",), list[str], _parse_services)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishHook(SubscribeHook):
    """[hooks.publish]."""

    with_message: bool = False  # send the message too


HOOK_TABLES: Final[Mapping[str, type[Hook]]] = MappingProxyType(
    {"connect": Hook, "subscribe": SubscribeHook, "publish": PublishHook}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """[hooks]. By default nothing is asked."""

    secret: bytes | None = _parsed(None, str, parse_signing_secret, secret=True)
    connect: Hook = field(default_factory=Hook)
    subscribe: SubscribeHook = field(default_factory=SubscribeHook)
    publish: PublishHook = field(default_factory=PublishHook)

    @property
    def written(self) -> dict[str, Hook]:
        """The hooks with a URL, by operation."""
        hooks = {"connect": self.connect, "subscribe": self.subscribe, "publish": self.publish}
        return {operation: hook for operation, hook in hooks.items() if hook.url}

    def problems(self) -> list[str]:
        """Return one text for each contradiction, with the remedy."""
        found = []
        for operation, hook in self.written.items():
            if self.secret is None and not is_loopback(urlsplit(hook.url).hostname or ""):
                found.append(
                    f"[hooks.{operation}] url is not on loopback, and its requests are not signed: "
                    "write [hooks] secret (openssl rand -hex 32; SNORKY_HOOKS__SECRET_FILE takes a file)"
                )
        return found
