"""Checks that the services which keys of backends name exist: a key with a misspelt name could call nothing."""

from collections.abc import Iterable

from snorky.gateway.config.settings import Private
from snorky.gateway.sdk.service import Service

__all__ = ["problems_of_keys"]


def problems_of_keys(private: Private, services: Iterable[Service]) -> list[str]:
    """Return one text for each service that a key names and that does not exist. services: for backends."""
    known = sorted(service.name for service in services)
    return [
        f"[private.api_keys.{key_name}] services: {name} is not among the services for backends; write names of these: "
        f"{', '.join(known)}"
        for key_name, key in private.keys.items()
        for name in sorted((key.services or set()) - set(known))
    ]
