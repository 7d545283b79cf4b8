"""`snorky import centrifugo`: the page's example, each kind of option, and options without an equivalent."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from snorky.gateway.cli import app
from snorky.gateway.config.importers.centrifugo import translate
from snorky.gateway.config.settings import load
from tests.support.processes.tools import ROOT
from tests.support.scenarios.pages import code_block

PAGE = ROOT / "docs" / "migrate-from-centrifugo.md"
SECRETS = {
    "made by: openssl rand -hex 32, too": "0f1e2d3c4b5a6978" * 3,
    "made by: openssl rand -hex 32": "7e5a91d2c4b8f036" * 3,
}


def with_secrets(text: str) -> str:
    for placeholder, secret in SECRETS.items():
        text = text.replace(placeholder, secret)
    return text


def settings_of(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "snorky.toml"
    path.write_text(text)
    return load(path, {})


def rules_of(settings: Any) -> Any:
    return settings.services["pubsub"].options["channels"]


def test_example_of_the_page_is_translated_as_the_page_says(tmp_path: Path) -> None:
    source = tmp_path / "config.json"
    source.write_text(with_secrets(code_block(PAGE, "json centrifugo", containing="namespaces")))
    done = CliRunner().invoke(app, ["import", "centrifugo", str(source)])
    assert done.exit_code == 0 and "has no equivalent" not in done.stderr
    found = settings_of(tmp_path, done.stdout)
    expected = settings_of(tmp_path, with_secrets(code_block(PAGE, "toml centrifugo", containing="[services.pubsub]")))
    assert found.problems(insecure=False) == []
    assert (found.public, found.auth, found.redis_url) == (expected.public, expected.auth, expected.redis_url)
    assert found.private == expected.private and found.backend.keys() == expected.backend.keys()
    (personal, chat) = rules_of(found)
    assert personal == {"match": "#*", "allow_subscribe": "token"}
    (theirs,) = [each for each in rules_of(expected) if each["match"] == "chat:*"]
    assert chat == theirs


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"allow_subscribe": "token", "allow_publish": "nobody"}),
        ({"allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True}, {"allow_subscribe": "anyone"}),
        ({"allow_publish_for_client": True, "allow_publish_for_subscriber": True}, {"allow_publish": "authenticated"}),
        ({"allow_history_for_subscriber": True}, {"allow_history": "subscriber", "allow_presence": "nobody"}),
        ({"history_size": 10, "history_ttl": "1h30m"}, {"history": 10, "history_ttl_s": 5400.0}),
        ({"history_size": 10}, {}),
        ({"join_leave": True}, {"join_leave": True, "presence": True}),
    ],
)
def test_options_of_a_namespace(options: Any, expected: Any) -> None:
    found = translate({"channel": {"namespaces": [{"name": "a", **options}]}})
    for name, value in expected.items():
        assert f"{name} = {json.dumps(value)}" in found.settings
    assert ("\nhistory = " in found.settings) is ("history" in expected)
    assert 'match = "a:*"' in found.settings


def test_user_limited_channels_do_not_open_to_others(tmp_path: Path) -> None:
    options = {
        "allow_user_limited_channels": True,
        "allow_subscribe_for_client": True,
        "allow_history_for_client": True,
    }
    found = translate({"channel": {"namespaces": [{"name": "a", **options}]}})
    limited, others = rules_of(settings_of(tmp_path, found.settings))
    assert (limited["match"], others["match"]) == ("a:*#*", "a:*"), "the first rule that matches counts"
    assert (limited["allow_subscribe"], limited["allow_history"]) == ("token", "subscriber")
    assert (limited["allow_publish"], limited["allow_presence"]) == ("nobody", "nobody")
    assert (others["allow_subscribe"], others["allow_history"]) == ("authenticated", "authenticated")
    assert any("a:*#* needs a subscription token" in note for note in found.notes)


def test_what_has_no_equivalent_is_named() -> None:
    config = {
        "client": {
            "token": {"hmac_secret_key": "short"},
            "proxy": {"connect": {"enabled": True, "endpoint": "http://x"}},
        },
        "channel": {
            "without_namespace": {"presence": True, "subscribe_proxy_enabled": True},
            "namespaces": [{"name": "a", "allowed_delta_types": ["fossil"]}],
            "max_length": 100,
        },
        "engine": {"type": "redis", "redis": {"address": ["127.0.0.1:1", "127.0.0.1:2"], "sentinel_user": "u"}},
        "admin": {"enabled": False},
    }
    found = translate(config)
    for part in (
        "less than 32 bytes",
        "client.proxy.connect.endpoint has no equivalent",
        "channel.without_namespace.subscribe_proxy_enabled has no equivalent",
        "channel.namespaces[0].allowed_delta_types has no equivalent",
        "channel.max_length has no equivalent",
        "also matches unknown namespaces",
        "engine.redis.sentinel_user is not translated: see redis_url",
    ):
        assert any(part in note for note in found.notes), part
    assert not any("admin" in note for note in found.notes)
    assert found.settings.startswith('redis_url = ["redis://127.0.0.1:1", "redis://127.0.0.1:2"]\n')


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"channel": 5}',
        '{"channel": {"namespaces": [{}]}}',
        '{"channel":{"namespaces":[{"name":"a","history_size":1,"history_ttl":"soon"}]}}',
    ],
)
def test_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    done = CliRunner().invoke(app, ["import", "centrifugo", str(path)])
    assert done.exit_code == 2 and "is no configuration of Centrifugo" in done.stderr and not done.stdout
    done = CliRunner().invoke(app, ["import", "centrifugo", str(tmp_path / "missing.json")])
    assert done.exit_code == 2 and "No such file" in done.stderr
