"""Changes: every setting that differs is named, and no name contains a value."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from snorky.gateway.config.changes import Changes, changes_of
from snorky.gateway.config.service_tables import ServiceTable
from snorky.gateway.config.settings import Settings, load

SECRET = "a-secret-of-more-than-thirty-two-bytes-0123456789"
FIRST = f"""
redis_url = "redis://127.0.0.1:6379/0"
[public]
port = 9000
[auth]
hmac_secret = "{SECRET}"
[private.api_keys]
web = "{SECRET[::-1]}"
[hooks]
secret = "{SECRET}"
[hooks.subscribe]
url = "http://127.0.0.1:1/subscribe"
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
channels = [{{ match = "a" }}]
[services.chat]
class = "snorky.services.chat:ChatService"
[backend.pubsub_backend]
class = "snorky.services.pubsub:PubSubBackend"
service = "pubsub"
"""


def read(text: str, tmp_path: Path) -> Settings:
    path = tmp_path / "snorky.toml"
    path.write_text(text)
    return load(path, {})


def changed(tmp_path: Path, **replaced: str) -> Changes:
    """Compare the first settings with others in which each text is replaced. replaced: named for reading only."""
    text = FIRST
    for each in replaced.values():
        old, new = each.split(" -> ")
        assert old in text
        text = text.replace(old, new)
    return changes_of(read(FIRST, tmp_path), read(text, tmp_path))


def test_the_same_file_read_twice_has_no_changes(tmp_path: Path) -> None:
    assert changed(tmp_path) == Changes((), {})
    assert changes_of(load(None, {}), load(None, {})) == Changes((), {})


def test_settings_are_named_as_in_the_file_without_values(tmp_path: Path) -> None:
    other = SECRET.replace("thirty", "forty")
    found = changed(
        tmp_path,
        redis="redis://127.0.0.1:6379/0 -> redis://:password@127.0.0.1:6379/1",
        port="port = 9000 -> port = 9001",
        key=f'hmac_secret = "{SECRET}" -> hmac_secret = "{other}"',
        api_key=f'web = "{SECRET[::-1]}" -> web = "{other}"',
        hook="http://127.0.0.1:1/subscribe -> http://127.0.0.1:2/subscribe",
    )
    names = ("redis_url", "[public] port", "[private] api_keys", "[auth] hmac_secret", "[hooks.subscribe] url")
    assert found == Changes(names, {})


def test_services_are_named_and_their_options_are_apart(tmp_path: Path) -> None:
    found = changed(
        tmp_path,
        rules='channels = [{ match = "a" }] -> unmatched = "open"',
        service='[services.chat]\nclass = "snorky.services.chat:ChatService" -> '
        '[services.rooms]\nclass = "snorky.services.chat:ChatService"',
        backend='service = "pubsub" -> service = "other"',
    )
    assert found.options == {"pubsub": ("channels", "unmatched")}
    assert found.names == ("[services.chat]", "[services.rooms]", "[backend.pubsub_backend] service")
    replaced = changed(tmp_path, other="snorky.services.chat:ChatService -> snorky.services.cursors:CursorsService")
    assert replaced == Changes(("[services.chat] class",), {})


def test_no_setting_is_overlooked() -> None:
    """Each field of each section, with a value that nothing equals."""
    before = load(None, {})
    sections = [each.name for each in fields(Settings) if each.name not in ("services", "backend")]
    assert len(sections) == 7
    count = 0
    for section in sections:
        value: Any = getattr(before, section)
        if not is_dataclass(value):
            assert changes_of(before, replace(before, **{section: object()})).names == (section,)
            count += 1
            continue
        for field in fields(value):
            inner: Any = getattr(value, field.name)
            if is_dataclass(inner):
                for deeper in fields(inner):
                    changed_inner = replace(value, **{field.name: replace(inner, **{deeper.name: object()})})  # type: ignore[type-var]
                    names = changes_of(before, replace(before, **{section: changed_inner})).names
                    assert names == (f"[{section}.{field.name}] {deeper.name}",)
                    count += 1
            else:
                names = changes_of(before, replace(before, **{section: replace(value, **{field.name: object()})})).names  # type: ignore[type-var]
                assert names == (f"[{section}] {field.name}",)
                count += 1
    assert count > 60


def test_tables_without_options_can_be_compared() -> None:
    table = ServiceTable("a:B", {"limit": 1})
    before = replace(load(None, {}), services={"own": table})
    assert changes_of(before, replace(before, services={"own": ServiceTable("a:B")})).options == {"own": ("limit",)}
