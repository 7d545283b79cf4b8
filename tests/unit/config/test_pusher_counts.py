"""`subscription_counts` of a Pusher app: accepted values, and refused ones with a remedy."""

from pathlib import Path

import pytest

from snorky.gateway.config.settings import load
from tests.support.scenarios.settings_files import load_toml, only_problem_of
from tests.unit.config.test_pusher_webhooks import SECRET, SHOP, URL, app_of


def test_counts_are_off_unless_an_app_asks_for_them(tmp_path: Path) -> None:
    assert app_of(load_toml(tmp_path, SHOP)).subscription_counts is False
    assert app_of(load_toml(tmp_path, f"{SHOP}subscription_counts = true")).subscription_counts is True
    variable = "SNORKY_PUBLIC__PUSHER_APPS__SHOP"
    environ = {f"{variable}__KEY": "k", f"{variable}__SECRET": SECRET, f"{variable}__SUBSCRIPTION_COUNTS": "true"}
    assert app_of(load(None, environ)).subscription_counts is True


def test_their_webhook_must_be_named(tmp_path: Path) -> None:
    on = f"{SHOP}{URL}subscription_counts = true\n"
    assert "subscription_count" not in app_of(load_toml(tmp_path, on)).webhook_events
    named = app_of(load_toml(tmp_path, f'{on}webhook_events = ["subscription_count"]'))
    assert named.webhook_events == ("subscription_count",)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("subscription_counts = 1", "has a wrong subscription_counts: expected `bool`"),
        (f'{URL}webhook_events = ["subscription_count"]', "and with subscription_counts = true subscription_count"),
        (f'{URL}webhook_events = ["subscription_count"]\nsubscription_counts = false', "unknown 'subscription_count'"),
    ],
)
def test_what_is_wrong_is_reported(tmp_path: Path, parts: str, expected: str) -> None:
    assert expected in only_problem_of(tmp_path, SHOP + parts)
