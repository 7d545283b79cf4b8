"""[hooks]: the valid settings, and those that are refused before anything starts."""

from pathlib import Path

import pytest

from snorky.gateway.config.hooks import Hook, Hooks, PublishHook, SubscribeHook
from snorky.gateway.config.settings import load
from tests.support.scenarios.settings_files import SECRET, load_toml, only_problem_of

LOOPBACK = "http://127.0.0.1:8000/hook"
REMOTE = "https://app.example.org/hook"


def test_nothing_is_asked_without_settings() -> None:
    assert load(None, {}).hooks == Hooks()
    assert load(None, {}).hooks.written == {}


def test_every_setting_is_taken(tmp_path: Path) -> None:
    hooks = load_toml(
        tmp_path,
        f"""
        [hooks]
        secret = "{SECRET}"
        [hooks.connect]
        url = "{REMOTE}/connect"
        timeout_s = 0.5
        cache_s = 30
        concurrency = 8
        queue_max = 0
        on_failure = "open"
        [hooks.subscribe]
        url = "{REMOTE}/subscribe"
        services = ["pubsub", "chat"]
        [hooks.publish]
        url = "{LOOPBACK}"
        with_message = true
        """,
    ).hooks
    assert hooks == Hooks(
        secret=SECRET.encode(),
        connect=Hook(url=f"{REMOTE}/connect", timeout_s=0.5, cache_s=30, concurrency=8, queue_max=0, on_failure="open"),
        subscribe=SubscribeHook(url=f"{REMOTE}/subscribe", services=("pubsub", "chat")),
        publish=PublishHook(url=LOOPBACK, with_message=True),
    )
    assert list(hooks.written) == ["connect", "subscribe", "publish"]


def test_environment_sets_the_same(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    hooks = load(
        None,
        {
            "SNORKY_HOOKS__SECRET_FILE": str(secret),
            "SNORKY_HOOKS__SUBSCRIBE__URL": REMOTE,
            "SNORKY_HOOKS__SUBSCRIBE__SERVICES": '["chat"]',
        },
    ).hooks
    assert hooks == Hooks(secret=SECRET.encode(), subscribe=SubscribeHook(url=REMOTE, services=("chat",)))


def test_secret_is_in_no_repr() -> None:
    assert SECRET not in repr(Hooks(secret=SECRET.encode()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f'[hooks.connect]\nurl = "{REMOTE}"',
            "[hooks.connect] url is not on loopback, and its requests are not signed",
        ),
        (f'[hooks.publish]\nurl = "{REMOTE}"', "[hooks.publish] url is not on loopback"),
        ('[hooks.connect]\nurl = "http://app.example.org/"', "[hooks.connect] url: must begin with https://"),
        ('[hooks.connect]\nurl = "ftp://app.example.org/"', "[hooks.connect] url: must begin with https://"),
        ('[hooks.connect]\nurl = "https://[::1"', "[hooks.connect] url: must begin with https://"),
        ('[hooks.connect]\nurl = "https://a:b@app.example.org/"', "must not have a user, a password or a fragment"),
        ('[hooks.connect]\nurl = "https://app.example.org/#a"', "must not have a user, a password or a fragment"),
        ('[hooks.connect]\nurl = "https://app.example.org/a b"', "characters that are not allowed in a URL"),
        ('[hooks.connect]\nurl = "https://app.example.org:x/"', "or a port that is not a number"),
        ('[hooks.connect]\non_failure = "maybe"', '[hooks.connect] on_failure: must be "closed"'),
        ("[hooks.connect]\ntimeout_s = 0", "[hooks.connect] timeout_s"),
        ("[hooks.connect]\nconcurrency = 0", "[hooks.connect] concurrency"),
        ("[hooks.subscribe]\nservices = []", "[hooks.subscribe] services: must be names of services"),
        ('[hooks.subscribe]\nservices = ["A b"]', "[hooks.subscribe] services: must be names of services"),
        ('[hooks.connect]\nservices = ["pubsub"]', "unknown setting"),
        ("[hooks.subscribe]\nwith_message = true", "unknown setting; did you mean [hooks.publish] with_message?"),
        ('[hooks]\nconnect = "https://app.example.org/"', "must be a table: [hooks.connect]"),
        ('hooks = "https://app.example.org/"', "must be a table: [hooks]"),
        ('[hooks.history]\nurl = "https://app.example.org/"', "unknown setting"),
        ('[hooks]\nsecret = "short"', "[hooks] secret: has less than 32 bytes"),
        (f'[hooks]\nsecret = "{"ab" * 32}"', "[hooks] secret: is too easy to guess"),
    ],
)
def test_what_is_not_safe_or_not_known_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in only_problem_of(tmp_path, text)


def test_connect_hook_is_a_way_to_authenticate(tmp_path: Path) -> None:
    settings = load_toml(tmp_path, f'[auth]\nrequired = true\n[hooks.connect]\nurl = "{LOOPBACK}"')
    assert settings.is_authenticating
    assert not load(None, {"SNORKY_HOOKS__PUBLISH__URL": LOOPBACK}).is_authenticating
    assert load(None, {"SNORKY_HOOKS__CONNECT__URL": LOOPBACK}).is_authenticating
