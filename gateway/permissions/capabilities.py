"""Capabilities: what a client's token permits by its claims `channels` and `services`. Pure.

    {"channels": {"orders:7": ["subscribe", "history"]}}        for the service `pubsub`
    {"services": {"chat": {"room:*": ["join"]}}}                for any service

They count where a rule has the word `token`. Claims of another shape, which another issuer may use for something else,
permit nothing. So does a pattern with placeholders: the issuer knows the client, and writes its values.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from snorky.gateway.config.rules.patterns import pattern_of

__all__ = ["PUBSUB", "permits"]

PUBSUB: Final = "pubsub"  # the service that the claim `channels` is about


def permits(claims: Mapping[str, Any], service: str, operation: str, name: str) -> bool:
    """Return True if the claims permit an operation on a channel. name: from `codec.channel_name`."""
    return any(_has(table, operation, name) for table in _tables(claims, service))


def _tables(claims: Mapping[str, Any], service: str) -> Iterator[Any]:
    if service == PUBSUB:
        yield claims.get("channels")
    services = claims.get("services")
    if isinstance(services, Mapping):
        yield services.get(service)


def _has(table: object, operation: str, name: str) -> bool:
    if not isinstance(table, Mapping):
        return False
    return any(
        isinstance(operations, list) and operation in operations and _matches(pattern, name)
        for pattern, operations in table.items()
    )


def _matches(text: str, name: str) -> bool:
    try:
        pattern = pattern_of(text)
    except ValueError:
        return False
    return not pattern.sources and pattern.matches(name)
