"""Checks that the services which [hooks] names ask the backend: otherwise a misspelt name would leave them open."""

from collections.abc import Iterable

from snorky.gateway.config.hooks import Hooks, SubscribeHook
from snorky.gateway.sdk.service import Service

__all__ = ["problems_of_hooks"]


def problems_of_hooks(hooks: Hooks, services: Iterable[Service]) -> list[str]:
    """Return one text for each service that would not ask. services: of the node."""
    known = {service.name: service for service in services}
    found = []
    for operation, hook in hooks.written.items():
        for name in hook.services if isinstance(hook, SubscribeHook) else ():
            asking = sorted(each.name for each in known.values() if operation in each.hook_operations)
            if name not in asking:
                what = "asks no backend for that" if name in known else "is not among the services"
                found.append(f"[hooks.{operation}] services: {name} {what}; write names of these: {', '.join(asking)}")
    return found
