"""docs/settings.md matches gateway/config/settings.py: every setting, its type, bounds, default and variable."""

import json
import re
import tomllib
from dataclasses import MISSING, Field, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from msgspec import Meta

from snorky.gateway.config.api_keys import KeyTable
from snorky.gateway.config.hooks import HOOK_TABLES, Hooks
from snorky.gateway.config.pusher import PusherApp, PusherTable
from snorky.gateway.config.rules.access_words import Words
from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.config.settings import Auth, ClusterLimits, Limits, Private, Public, Settings, load
from tests.support.scenarios.tokens import SECRET, Issuer

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "settings.md").read_text()
SECTIONS = {
    "Redis": Settings,
    "public": Public,
    "private": Private,
    "auth": Auth,
    "hooks": Hooks,
    **{f"hooks.{name}": kind for name, kind in HOOK_TABLES.items()},
    "limits": Limits,
    "cluster_limits": ClusterLimits,
}
TABLES = {  # of Settings and Hooks: sections of their own
    "Redis": {"public", "private", "auth", "hooks", "limits", "cluster_limits", "services", "backend"},
    "hooks": set(HOOK_TABLES),
}
WORDS = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    list[str]: "list of texts",
    str | list[str]: "text, or list",
    KeyTable: "table of keys",
    PusherTable: "table of apps",
    tuple[str, ...]: "list of texts",
    Words: "words",
}

PEM = Issuer().pem.decode()
OTHER_VALUES = {
    "replies_max_bytes": "50000000",  # none of them a default
    "native_fanout": "off",
    "text": "somewhere",
    "integer": "77777",
    "port": "7777",
    "number": "7.5",
    "true": "true",
    "redis_url": "redis://somewhere:1/0",
    "allowed_origins": '["https://a.example.org"]',
    "trusted_proxies": '["10.0.0.0/8"]',
    "sockjs_client_url": "/sockjs.min.js",
    "protocols": '["sse"]',
    "hmac_secret": SECRET,
    "hmac_secret_previous": SECRET[::-1],
    "api_key": SECRET,
    "api_keys": json.dumps({"web": SECRET}),
    "pusher_apps": json.dumps({"shop": {"key": "shop", "secret": SECRET}}),
    "public_key": PEM,
    "public_key_previous": Issuer().pem.decode(),
    "jwks_url": "https://issuer.example.org/keys",
    "identify_hook": "module:function",
    "secret": SECRET,
    "url": "http://127.0.0.1:8000/hook",
    "on_failure": "open",
    "services": '["chat"]',
    "timeout_s": "7.5",
    "concurrency": "777",
}
BESIDE = {"auth": {"SNORKY_AUTH__HMAC_SECRET": SECRET}}  # without a key the other settings mean nothing


@dataclass(frozen=True)
class Row:
    section: str
    name: str
    variable: str
    type: str
    default: str


def rows() -> list[Row]:
    found = []
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL):
        section = re.sub(r"[`\[\]]|:.*", "", title)
        for cells in re.findall(
            r"^\| `(\w+)` \| `(SNORKY_\w+)` \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", body, re.MULTILINE
        ):
            if section in SECTIONS:
                found.append(Row(section, *cells))
    return found


def settings_of(section: str) -> list[Any]:
    return [each for each in fields(SECTIONS[section]) if each.name not in TABLES.get(section, ())]


def type_of(section: str, name: str) -> str:
    """Return a setting's type as the page writes it: the word, and the bounds."""
    member = next(each for each in settings_of(section) if each.name == name)
    hint = get_type_hints(SECTIONS[section], include_extras=True)[name]
    wire = member.metadata.get("wire")
    if wire is not None:
        return WORDS[wire]
    return written_type(hint)


def written_type(hint: Any) -> str:
    """Return a type as the page writes it."""
    base, *metas = (hint,) if hint in WORDS else get_args(hint) or (hint,)
    bounds = [
        f"{sign} {getattr(meta, word):.8g}"
        for meta in metas
        if isinstance(meta, Meta)
        for sign, word in ((">", "gt"), ("≥", "ge"), ("≤", "le"))
        if getattr(meta, word) is not None
    ]
    return f"{WORDS[base]} {', '.join(bounds)}".strip()


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_has_one_row_and_no_row_is_of_the_past(section: str) -> None:
    assert [row.name for row in rows() if row.section == section] == [each.name for each in settings_of(section)]


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.section}.{row.name}")
def test_type_bounds_and_default_are_those_of_the_code(row: Row) -> None:
    member = next(each for each in settings_of(row.section) if each.name == row.name)
    assert row.type == type_of(row.section, row.name)
    assert member.default is not MISSING
    expected = "none" if member.default is None else f"`{json.dumps(member.default)}`"
    assert row.default == expected.replace("()", "[]")


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.section}.{row.name}")
def test_variable_sets_this_setting_and_no_other(row: Row) -> None:
    value = OTHER_VALUES.get(row.name) or OTHER_VALUES[row.type.split()[0]]
    beside = (
        {}
        if row.name in ("hmac_secret", "unsafe_hmac_secret", "public_key", "jwks_url")
        else BESIDE.get(row.section, {})
    )
    if row.name == "public_key_previous":
        beside = {"SNORKY_AUTH__PUBLIC_KEY": PEM}
    before, after = load(None, beside), load(None, {**beside, row.variable: value})
    changed = {
        (section, each.name)
        for section in SECTIONS
        for each in settings_of(section)
        if getattr(_part(before, section), each.name) != getattr(_part(after, section), each.name)
    }
    assert changed == {(row.section, row.name)}


def _part(settings: Settings, section: str) -> Any:
    return settings if section == "Redis" else attrgetter(section)(settings)


def test_parts_of_an_app_are_those_of_the_code() -> None:
    section = re.split(r"^##", PAGE[PAGE.index("### Apps of Pusher's clients") + 3 :], flags=re.MULTILINE)[0]
    documented = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE)
    hints = get_type_hints(PusherApp, include_extras=True)
    assert documented == [
        (each.name, written_type(hints[each.name]), default_of(each)) for each in fields(PusherApp) if each.name != "id"
    ]


def default_of(part: "Field[Any]") -> str:
    return "required" if part.default is MISSING else f"`{json.dumps(part.default)}`"


def test_standard_services_are_those_of_the_page() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    written, standard = tomllib.loads(block), load(None, {})
    for registry in ("services", "backend"):
        found = {
            name: {"class": table.class_name, **table.options} for name, table in getattr(standard, registry).items()
        }
        assert written[registry] == found


def test_rules_of_channels_are_those_of_the_code() -> None:
    (block,) = re.findall(r"```toml rules\n(.*?)```", PAGE, re.DOTALL)
    Rules.read(tomllib.loads(block)["services"]["pubsub"]["channels"])
    section = PAGE[PAGE.index("### Rules of channels") :]
    cells = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE)[: len(RULE)]
    hints = get_type_hints(ChannelRule, include_extras=True)
    for (name, written, default), each in zip(cells, RULE, strict=True):
        kind, *metas = (Words,) if hints[each.name] == Words else get_args(hints[each.name]) or (hints[each.name],)
        bounds = "".join(
            f"{sign} {getattr(meta, word):.8g}" for meta in metas for sign, word in BOUNDS if _has(meta, word)
        )
        bounds = bounds.replace("≥ 0≤", "≥ 0, ≤").replace("> 0≤", "> 0, ≤")
        assert (name, written) == (each.name, f"{WORDS[kind]} {bounds}".strip())
        is_required = each.name == "match"
        assert default == ("none" if is_required or each.default is None else f"`{json.dumps(each.default)}`")


BOUNDS = ((">", "gt"), ("≥", "ge"), ("≤", "le"))
RULE = msgspec.structs.fields(ChannelRule)


def _has(meta: object, word: str) -> bool:
    return isinstance(meta, Meta) and getattr(meta, word) is not None
