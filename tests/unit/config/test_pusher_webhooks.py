"""Where a Pusher app's webhooks go, and which events: accepted values, and refused ones with a remedy."""

from pathlib import Path

import pytest

from snorky.gateway.config.pusher import WEBHOOK_EVENTS, PusherApp
from snorky.gateway.config.settings import Settings, load
from tests.support.scenarios.settings_files import load_toml, only_problem_of

SECRET = "8d2a5c1f07b94e63a1d8c2f4956be370"
SHOP = f'[public.pusher_apps.shop]\nkey = "shop-key"\nsecret = "{SECRET}"\n'
URL = 'webhook_url = "https://backend.example/hook"\n'


def app_of(settings: Settings) -> PusherApp:
    return (settings.public.pusher_apps or {})["shop"]


def test_without_a_url_there_are_no_webhooks_and_with_one_all_but_client_events(tmp_path: Path) -> None:
    assert app_of(load_toml(tmp_path, SHOP)).webhook_url == ""
    app = app_of(load_toml(tmp_path, SHOP + URL))
    assert app.webhook_url == "https://backend.example/hook"
    assert set(app.webhook_events) == set(WEBHOOK_EVENTS) - {"client_event"}


def test_events_and_url_come_from_the_file_or_the_environment(tmp_path: Path) -> None:
    text = f'{SHOP}{URL}webhook_events = ["member_added", "client_event"]'
    assert app_of(load_toml(tmp_path, text)).webhook_events == ("member_added", "client_event")
    variable = "SNORKY_PUBLIC__PUSHER_APPS__SHOP"
    environ = {
        f"{variable}__KEY": "shop-key",
        f"{variable}__SECRET": SECRET,
        f"{variable}__WEBHOOK_URL": "http://127.0.0.1:9/hook",
        f"{variable}__WEBHOOK_EVENTS": '["cache_miss"]',
    }
    app = app_of(load(None, environ))
    assert (app.webhook_url, app.webhook_events) == ("http://127.0.0.1:9/hook", ("cache_miss",))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ('webhook_url = "http://backend.example/"', "has a wrong webhook_url: it must begin with https://"),
        ('webhook_url = "ftp://127.0.0.1/"', "has a wrong webhook_url: it must begin with https://"),
        ('webhook_url = "https://user:pw@backend.example/"', "must not have a user"),
        ('webhook_url = "https://backend.example/#a"', "a fragment"),
        ('webhook_url = "https://backend.example:x/"', "a port that is not a number"),
        ("webhook_url = 7", "has a wrong webhook_url: expected `str`"),
        (f'{URL}webhook_events = ["subscription_count"]', "unknown 'subscription_count'; known: channel_occupied"),
        (f'{URL}webhook_events = "cache_miss"', "has a wrong webhook_events: expected `array`"),
        ('webhook_events = ["cache_miss"]', "no webhook_url"),
    ],
)
def test_what_is_wrong_is_reported(tmp_path: Path, parts: str, expected: str) -> None:
    assert expected in only_problem_of(tmp_path, SHOP + parts)
