"""PusherApp: an application of Pusher's clients and libraries; `[public.pusher_apps]` in the file and the environment.

    [public.pusher_apps.shop]          # its id, in the URLs of the HTTP API
    key = "app-key"                    # public: pages contain it
    secret = "..."                     # openssl rand -hex 32; only the backend has it

Each app has the channels of one pub/sub service. `with_rules` adds rules to it for the names that have a meaning in
Pusher's protocol. They are not in the settings, so that a reload compares what is written.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Final, get_type_hints

import msgspec
from msgspec import Meta

from snorky.gateway.config.parsers import parse_backend_url
from snorky.gateway.config.rules.patterns import pattern_of
from snorky.gateway.config.secrets import check_strength, check_visible
from snorky.gateway.config.service_tables import ServiceTable
from snorky.gateway.config.sources import PUSHER_APPS, Key, Written

__all__ = [
    "COUNT_EVENT",
    "RULES",
    "WEBHOOK_EVENTS",
    "PusherApp",
    "PusherTable",
    "gather_pusher_apps",
    "parse_pusher_apps",
    "with_rules",
]

PusherTable = dict[str, dict[str, Any]]  # by the app's id: its parts
SECRET_MIN_BITS: Final = 45.0  # the 20 random hex digits of hosted Pusher's secrets have 80, and measure 47 or more
CACHE_S: Final = 1_800.0  # for this long a cache channel keeps its last event

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CLOSED: Final = {"allow_subscribe": "token", "allow_publish": "token"}
# Clients get the last one. The others are for the node: it reads what a backend publishes through Redis from history.
_CACHE: Final = {"history": 100, "history_ttl_s": CACHE_S}
_PRESENCE: Final = {"presence": True, "join_leave": True}
RULES: Final[tuple[Mapping[str, object], ...]] = (
    {"match": "cache-*", "allow_publish": "nobody", **_CACHE},
    {"match": "private-cache-*", **_CLOSED, **_CACHE},
    {"match": "private-encrypted-cache-*", **_CLOSED, **_CACHE},
    {"match": "private-*", **_CLOSED},
    {"match": "presence-cache-*", **_CLOSED, **_PRESENCE, **_CACHE},
    {"match": "presence-*", **_CLOSED, **_PRESENCE},
    {"match": "#server-to-user-*", **_CLOSED},
)
_PREFIXES: Final = ("private-", "presence-", "#server-to-user-")  # of channels that not everyone may hear
WEBHOOK_EVENTS: Final = (
    "channel_occupied",
    "channel_vacated",
    "member_added",
    "member_removed",
    "client_event",
    "cache_miss",
)
COUNT_EVENT: Final = "subscription_count"  # only with subscription_counts


@dataclass(frozen=True, slots=True)
class PusherApp:
    """One app. id: of the HTTP API. key: of its clients. service: the pub/sub service that has its channels.

    client_events: clients may send `client-` events. data_max_bytes: of an event's data, from the HTTP API.
    webhook_url: of the backend, which gets the webhook_events; "" = none are sent. subscription_counts: tell clients
    how many subscribers their channels have. watchlists: tell clients which users on their watchlists are online.
    """

    id: str
    key: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
    secret: Annotated[str, Meta(min_length=1, max_length=255)] = field(repr=False)
    service: Annotated[str, Meta(pattern=r"\A[a-z0-9_-]+\Z")] = "pubsub"
    client_events: bool = True
    data_max_bytes: Annotated[int, Meta(ge=64, le=1_000_000)] = 65_536
    webhook_url: str = ""
    webhook_events: tuple[str, ...] = tuple(each for each in WEBHOOK_EVENTS if each != "client_event")
    subscription_counts: bool = False
    watchlists: bool = False


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
    if len(found) > 1 and any("service" not in parts for parts in value.values()):
        raise ValueError('has several apps: write service = "NAME" for each; apps of one service share their channels')
    return MappingProxyType(found)


def with_rules(name: str, table: ServiceTable, apps: Mapping[str, PusherApp]) -> ServiceTable:
    """Add the rules for Pusher's channels to the table of a service, if apps have its channels.

    Own rules come first, up to one whose pattern has other names too ("*", "p*", "*-room"): that would open private
    channels. An own rule whose pattern begins as one of RULES has the values of that one, unless it writes others.
    """
    written = table.options.get("channels", ())
    if not any(app.service == name for app in apps.values()) or not isinstance(written, list | tuple):
        return table  # the service will refuse what is no list
    at = next((number for number, rule in enumerate(written) if _is_wider(rule)), len(written))
    own = list(map(_completed, written))
    channels = [*own[:at], *map(dict, RULES), *own[at:]]
    return replace(table, options=MappingProxyType({**table.options, "channels": channels}))


def _is_wider(rule: Any) -> bool:
    """Return True if a rule is for names that RULES close, and for others."""
    match = rule.get("match") if isinstance(rule, Mapping) else getattr(rule, "match", None)
    try:
        first = pattern_of(match).first if isinstance(match, str) else ""
    except ValueError:
        return False  # the service will refuse it
    return first != match and any(each != first and each.startswith(first) for each in _PREFIXES)


def _completed(rule: Any) -> Any:
    """Add to an own rule what RULES say about channels whose names begin so."""
    match = rule.get("match") if isinstance(rule, Mapping) else None
    if not isinstance(match, str):
        return rule  # the service takes or refuses it
    given = next((each for each in RULES if match.startswith(str(each["match"]).removesuffix("*"))), {})
    return {**{key: value for key, value in given.items() if key != "history_ttl_s" or "history" not in rule}, **rule}


def gather_pusher_apps(written: dict[Key, Written], problems: list[str]) -> None:
    """Merge all values below `[public.pusher_apps]` into one value of the shape PusherTable."""
    parts = {key: written.pop(key) for key in list(written) if key[:2] == PUSHER_APPS and len(key) == 4}
    if not parts:
        return
    where = " and ".join(part.where for part in parts.values())
    if PUSHER_APPS in written:
        problems.append(f"{written[PUSHER_APPS].where} and {where} are both set; unset one of them")
        return
    table: dict[str, dict[str, object]] = {}
    for (_, _, app_id, name), part in parts.items():
        is_text = name in ("key", "secret", "service", "webhook_url")  # one of digits would be decoded as a number
        table.setdefault(app_id, {})[name] = part.value if is_text else part.guessed()
    written[PUSHER_APPS] = Written(table, where)


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
        try:
            check_visible(values[name])
            if name == "secret":
                check_strength(values[name], min_bits=SECRET_MIN_BITS)
        except ValueError as error:
            raise ValueError(f"has a wrong {name}: it {error}") from None
    _check_webhooks(values)
    return PusherApp(id=app_id, **values)


def _check_webhooks(values: Mapping[str, Any]) -> None:
    """Check where the events of webhooks go, and which. Raises ValueError."""
    names = values.get("webhook_events", ())
    has_counts = values.get("subscription_counts", False)
    if unknown := [name for name in names if name not in WEBHOOK_EVENTS and not (has_counts and name == COUNT_EVENT)]:
        known = f"{', '.join(WEBHOOK_EVENTS)}, and with subscription_counts = true {COUNT_EVENT}"
        raise ValueError(f"has a wrong webhook_events: unknown {unknown[0]!r:.60}; known: {known}")
    if names and not values.get("webhook_url"):
        raise ValueError('has webhook_events, and no webhook_url; write webhook_url = "https://..."')
    if values.get("webhook_url"):
        try:
            parse_backend_url(values["webhook_url"], "it receives what clients do")
        except ValueError as error:
            raise ValueError(f"has a wrong webhook_url: it {error}") from None
