"""Translates a configuration of Centrifugo (versions 5 and 6, JSON) into settings of Snorky. Pure.

Rules:
- Everything that is set and has no equivalent is named in a note: nothing gets lost silently.
- The translated rules permit nothing that the rules of Centrifugo do not permit.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from snorky.gateway.config.secrets import SECRET_MIN_BYTES

__all__ = ["Translation", "translate"]

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
# dotted names of Centrifugo -> section and key of Snorky; the value stays as it is
_SAME: Final = {
    "client.token.hmac_secret_key": ("auth", "hmac_secret"),
    "client.token.rsa_public_key": ("auth", "public_key"),
    "client.token.ecdsa_public_key": ("auth", "public_key"),
    "client.token.jwks_public_endpoint": ("auth", "jwks_url"),
    "client.token.audience": ("auth", "audience"),
    "client.token.issuer": ("auth", "issuer"),
    "client.token.user_id_claim": ("auth", "identity_claim"),
    "client.allowed_origins": ("public", "allowed_origins"),
    "client.channel_limit": ("limits", "channels_per_connection"),
    "client.queue_max_size": ("limits", "outbox_max_bytes"),
    "client.subscribe_to_user_personal_channel.enabled": ("public", "centrifuge_personal_channels"),
    "http_api.key": ("private", "api_key"),
    "http_server.address": ("public", "host"),
    "http_server.port": ("public", "port"),
}
_OPERATIONS: Final = ("subscribe", "publish", "history", "presence")
_WORDS: Final = {"anonymous": "anyone", "client": "authenticated", "subscriber": "subscriber"}  # the widest first
_WITHOUT: Final = {"subscribe": "token"}  # if no option permits it: only a subscription token; others: nobody
_ALWAYS: Final = frozenset(("force_recovery", "force_positioning", "force_push_join_leave"))
_SERVICES: Final = {
    "services.auth": "snorky.services.auth:AuthService",
    "services.pubsub": "snorky.services.pubsub:PubSubService",
    "backend.pubsub_backend": "snorky.services.pubsub:PubSubBackend",
    "backend.control": "snorky.services.control:ControlBackend",
}


@dataclass(frozen=True, slots=True)
class Translation:
    """settings: TOML. notes: sentences about what has no equivalent or needs attention."""

    settings: str
    notes: list[str]


def translate(config: Mapping[str, Any]) -> Translation:
    """Translate a configuration. config: the decoded JSON. Raises ValueError: it is no configuration of Centrifugo."""
    values, notes = dict(_leaves(config)), []
    sections: dict[str, dict[str, Any]] = {}
    for name, (section, key) in _SAME.items():
        if _is_set(value := values.pop(name, None)):
            sections.setdefault(section, {})[key] = value
    secret = sections.get("auth", {}).get("hmac_secret")
    if isinstance(secret, str) and len(secret.encode()) < SECRET_MIN_BYTES:
        notes.append(f"[auth] hmac_secret has less than {SECRET_MIN_BYTES} bytes: make another one, here and there")
    if "auth" in sections and not values.pop("client.allow_anonymous_connect_without_token", False):
        sections["auth"]["required"] = True
    if sections.get("public", {}).get("centrifuge_personal_channels"):
        notes.append('a rule for "#*" closes the personal channels to other clients')
    urls = _redis_urls(values)
    rules = list(_rules(config, sections, notes))
    for name, value in values.items():
        if not _is_set(value) or name.startswith("channel."):
            continue
        is_redis = name.startswith("engine.redis.")
        notes.append(f"{name} is not translated: see redis_url" if is_redis else f"{name} has no equivalent")
    return Translation(_written(urls, sections, rules), notes)


def _rules(
    config: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]], notes: list[str]
) -> Iterator[dict[str, Any]]:
    if sections.get("public", {}).get("centrifuge_personal_channels"):
        yield {"match": "#*", "allow_subscribe": "token"}
    channel = config.get("channel", {})
    if not isinstance(channel, Mapping):
        raise ValueError("channel is no object")
    for at, namespace in enumerate(channel.get("namespaces") or ()):
        if not isinstance(namespace, Mapping) or not isinstance(namespace.get("name"), str):
            raise ValueError(f"channel.namespaces[{at}] has no name")
        yield from _rules_of(f"{namespace['name']}:*", namespace, f"channel.namespaces[{at}]", notes)
    without = channel.get("without_namespace")
    if isinstance(without, Mapping) and any(map(_is_set, without.values())):
        notes.append('a rule for "*" takes the place of channel.without_namespace: it also matches unknown namespaces')
        yield from _rules_of("*", without, "channel.without_namespace", notes)
    for name, value in channel.items():
        if name not in ("namespaces", "without_namespace") and _is_set(value):
            notes.append(f"channel.{name} has no equivalent")


def _rules_of(match: str, options: Mapping[str, Any], where: str, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rule of a namespace, and before it one that closes user-limited channels (NAME:x#42) to others."""
    rest = {name: value for name, value in options.items() if name != "name" and name not in _ALWAYS and _is_set(value)}
    is_limited = rest.pop("allow_user_limited_channels", False)
    rule = _rule(match, rest, where, notes)
    if is_limited:
        limited = {f"allow_{each}": "subscriber" for each in _OPERATIONS if rule[f"allow_{each}"] != "nobody"}
        yield rule | limited | {"match": f"{match}#*", "allow_subscribe": "token"}
        notes.append(f"{where}: user-limited channels have no equivalent, so {match}#* needs a subscription token")
    yield rule


def _rule(match: str, rest: dict[str, Any], where: str, notes: list[str]) -> dict[str, Any]:
    rule: dict[str, Any] = {"match": match}
    size, ttl = rest.pop("history_size", 0), rest.pop("history_ttl", 0)
    if size and ttl:
        rule |= {"history": size, "history_ttl_s": _seconds(ttl, f"{where}.history_ttl")}
    if rest.pop("presence", False):
        rule["presence"] = True
    if rest.pop("join_leave", False):
        rule["join_leave"] = True
        if "presence" not in rule:
            rule["presence"] = True
            notes.append(f"{where}: join_leave needs presence in Snorky")
    for operation in _OPERATIONS:
        asked = {who: rest.pop(f"allow_{operation}_for_{who}", False) for who in _WORDS}
        words = [word for who, word in _WORDS.items() if asked[who]]
        rule[f"allow_{operation}"] = words[0] if words else _WITHOUT.get(operation, "nobody")
    notes += [f"{where}.{name} has no equivalent" for name in rest]
    return rule


def _redis_urls(values: dict[str, Any]) -> list[str]:
    """Return the URL of one server, or of several independent ones: both gateways distribute channels over them."""
    kind, address = values.pop("engine.type", ""), values.pop("engine.redis.address", "")
    if kind != "redis" or not address:
        return []
    addresses = address if isinstance(address, list) else str(address).split(",")
    return [each if "://" in str(each) else f"redis://{each}" for each in addresses]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values."""
    if not isinstance(value, Mapping):
        if not name:
            raise ValueError("a configuration is an object")
        yield name, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{name}.{key}" if name else str(key))


def _is_set(value: Any) -> bool:
    return value not in (None, False, "", 0, [], {})


def _seconds(value: Any, name: str) -> float:
    if isinstance(value, int | float):
        return float(value)
    parts = _DURATION.findall(str(value))
    if not parts or "".join(number + unit for number, unit in parts) != str(value):
        raise ValueError(f"{name} is no duration")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _written(urls: list[str], sections: Mapping[str, Mapping[str, Any]], rules: list[dict[str, Any]]) -> str:
    """Write TOML. A text of JSON is also one of TOML."""
    lines = [f"redis_url = {json.dumps(urls if len(urls) > 1 else urls[0])}"] if urls else []
    for name in sorted(sections):
        lines += ["", f"[{name}]", *_lines(sections[name])]
    for name, class_name in _SERVICES.items():
        lines += ["", f"[{name}]", f"class = {json.dumps(class_name)}"]
        if name == "services.pubsub":
            for rule in rules:
                lines += ["", "[[services.pubsub.channels]]", *_lines(rule)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
