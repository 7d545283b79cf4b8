"""PusherApp: an application of Pusher's clients and libraries; `[public.pusher_apps]` in the file and the environment.

    [public.pusher_apps.shop]          # its id, in the URLs of the HTTP API
    key = "app-key"                    # public: pages contain it
    secret = "..."                     # openssl rand -hex 32; only the backend has it

Each app has the channels of one pub/sub service. `with_rules` adds rules to it for the names that have a meaning in
Pusher's protocol, behind those that are written.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Final, get_type_hints

import msgspec
from msgspec import Meta

from snorky.gateway.config.secrets import check_strength, check_visible
from snorky.gateway.config.service_tables import ServiceTable
from snorky.gateway.config.sources import PUSHER_APPS, Key, Written

__all__ = ["RULES", "PusherApp", "PusherTable", "gather_pusher_apps", "parse_pusher_apps", "with_rules"]

PusherTable = dict[str, dict[str, Any]]  # by the app's id: its parts
CACHE_S: Final = 1_800.0  # for this long a cache channel keeps its last event

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CLOSED: Final = {"allow_subscribe": "token", "allow_publish": "token"}
_CACHE: Final = {"history": 1, "history_ttl_s": CACHE_S}
_PRESENCE: Final = {"presence": True, "join_leave": True}
RULES: Final[tuple[Mapping[str, object], ...]] = (
    {"match": "cache-*", **_CACHE},
    {"match": "private-cache-*", **_CLOSED, **_CACHE},
    {"match": "private-encrypted-cache-*", **_CLOSED, **_CACHE},
    {"match": "private-*", **_CLOSED},
    {"match": "presence-cache-*", **_CLOSED, **_PRESENCE, **_CACHE},
    {"match": "presence-*", **_CLOSED, **_PRESENCE},
    {"match": "#server-to-user-*", **_CLOSED},
)


@dataclass(frozen=True, slots=True)
class PusherApp:
    """One app. id: of the HTTP API. key: of its clients. service: the pub/sub service that has its channels.

    client_events: clients may send `client-` events. data_max_bytes: of an event's data, from the HTTP API.
    """

    id: str
    key: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
    secret: Annotated[str, Meta(min_length=1, max_length=255)] = field(repr=False)
    service: Annotated[str, Meta(pattern=r"\A[a-z0-9_-]+\Z")] = "pubsub"
    client_events: bool = True
    data_max_bytes: Annotated[int, Meta(ge=64, le=1_000_000)] = 65_536


_TYPES: Final = {name: kind for name, kind in get_type_hints(PusherApp, include_extras=True).items() if name != "id"}


def parse_pusher_apps(value: PusherTable) -> Mapping[str, PusherApp]:
    """Parse the apps by their ids. The text of a ValueError never quotes a secret."""
    found: dict[str, PusherApp] = {}
    for app_id, parts in value.items():
        if not _NAME.fullmatch(app_id):
            raise ValueError("has an app whose id has other characters than A-Z a-z 0-9 _ -")
        try:
            app = _parse(app_id, parts)
        except ValueError as error:
            raise ValueError(f"the app {app_id} {error}") from None
        for other in found.values():
            if other.key == app.key:
                raise ValueError(f"the apps {other.id} and {app_id} have the same key; give each its own")
        found[app_id] = app
    return MappingProxyType(found)


def with_rules(services: Mapping[str, ServiceTable], apps: Mapping[str, PusherApp]) -> dict[str, ServiceTable]:
    """Add the rules for Pusher's channels to the services that apps have. Their own rules come first.

    Raises ValueError: a service is missing.
    """
    found = dict(services)
    for name in dict.fromkeys(app.service for app in apps.values()):
        table = found.get(name)
        if table is None:
            raise ValueError(f'needs the service {name}; write [services.{name}], or another service = "NAME"')
        written = table.options.get("channels", ())
        if not isinstance(written, list | tuple):
            continue  # the service will refuse it
        rules = [each for each in written if not (isinstance(each, Mapping) and each.get("match") == "*")]
        last = [each for each in written if each not in rules]  # it matches everything
        options = {**table.options, "channels": [*rules, *map(dict, RULES), *last]}
        found[name] = replace(table, options=MappingProxyType(options))
    return found


def gather_pusher_apps(written: dict[Key, Written]) -> None:
    """Merge all values below `[public.pusher_apps]` into one value of the shape PusherTable."""
    parts = {key: written.pop(key) for key in list(written) if key[:2] == PUSHER_APPS and len(key) == 4}
    if not parts:
        return
    table: dict[str, dict[str, object]] = {}
    for (_, _, app_id, name), part in parts.items():
        is_text = name in ("key", "secret", "service")  # one of digits would be decoded as a number
        table.setdefault(app_id, {})[name] = part.value if is_text else part.guessed()
    written[PUSHER_APPS] = Written(table, " and ".join(part.where for part in parts.values()))


def _parse(app_id: str, parts: Mapping[str, Any]) -> PusherApp:
    if unknown := [part for part in parts if part not in _TYPES]:
        raise ValueError(f"has the unknown part {unknown[0]!r:.60}; known are {', '.join(_TYPES)}")
    values: dict[str, Any] = {}
    for name, value in parts.items():
        try:
            values[name] = msgspec.convert(value, _TYPES[name])
        except msgspec.ValidationError as error:
            raise ValueError(f"has a wrong {name}: {str(error)[:1].lower()}{str(error)[1:]}") from None
    for name in ("key", "secret"):
        if name not in values:
            raise ValueError(f'needs {name}; write {name} = "..."')
        check_visible(values[name])
    check_strength(values["secret"])
    return PusherApp(id=app_id, **values)
