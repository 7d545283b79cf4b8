"""Changes: which settings differ between two readings of a file and the environment. Pure.

    changes_of(running, written).names       # ("[public] port", "[services.chat] class")
    changes_of(running, written).options     # {"pubsub": ("channels",)}

No name contains a value, which may be a secret.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from snorky.gateway.config.auth import Auth
from snorky.gateway.config.hooks import Hook, Hooks
from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.config.service_tables import ServiceTable
from snorky.gateway.config.settings import Limits, Private, Public, Settings

__all__ = ["Changes", "changes_of"]

_SECTIONS: Final = (Public, Private, Auth, Limits, ClusterLimits, Hooks, Hook)
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Changes:
    """names: settings that differ, without the options of public services. options: these, by the service's name."""

    names: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]


def changes_of(before: Settings, after: Settings) -> Changes:
    """Compare two settings. Services that only one of them has, or with another class, are in `names`."""
    names = [*_sections(before, after, "")]
    names += [*_tables("services", before.services, after.services)]
    names += [*_tables("backend", before.backend, after.backend)]
    for name, options in _options(before.backend, after.backend).items():
        names += [f"[backend.{name}] {option}" for option in options]
    return Changes(tuple(names), _options(before.services, after.services))


def _sections(before: Any, after: Any, table: str) -> Iterator[str]:
    for member in fields(before):
        old, new = getattr(before, member.name), getattr(after, member.name)
        if isinstance(old, _SECTIONS):
            yield from _sections(old, new, f"{table}.{member.name}" if table else member.name)
        elif old != new and not (isinstance(before, Settings) and member.name in ("services", "backend")):
            yield f"[{table}] {member.name}" if table else member.name


def _tables(registry: str, before: Mapping[str, ServiceTable], after: Mapping[str, ServiceTable]) -> Iterator[str]:
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            yield f"[{registry}.{name}]"
        elif before[name].class_name != after[name].class_name:
            yield f"[{registry}.{name}] class"


def _options(before: Mapping[str, ServiceTable], after: Mapping[str, ServiceTable]) -> dict[str, tuple[str, ...]]:
    """Return the options that differ, by service; of services that both have, with the same class."""
    found = {}
    for name in before:
        if name not in after or before[name].class_name != after[name].class_name:
            continue
        old, new = before[name].options, after[name].options
        differing = [each for each in sorted({*old, *new}) if old.get(each, _ABSENT) != new.get(each, _ABSENT)]
        if differing:
            found[name] = tuple(differing)
    return found
