"""`watchlists` of a Pusher app: accepted values, and refused ones with a remedy."""

from pathlib import Path

from snorky.gateway.config.settings import load
from tests.support.scenarios.settings_files import load_toml, only_problem_of
from tests.unit.config.test_pusher_webhooks import SECRET, SHOP, app_of


def test_watchlists_are_off_unless_an_app_asks_for_them(tmp_path: Path) -> None:
    assert app_of(load_toml(tmp_path, SHOP)).watchlists is False
    assert app_of(load_toml(tmp_path, f"{SHOP}watchlists = true")).watchlists is True
    variable = "SNORKY_PUBLIC__PUSHER_APPS__SHOP"
    environ = {f"{variable}__KEY": "k", f"{variable}__SECRET": SECRET, f"{variable}__WATCHLISTS": "true"}
    assert app_of(load(None, environ)).watchlists is True


def test_another_type_is_refused(tmp_path: Path) -> None:
    assert "has a wrong watchlists: expected `bool`" in only_problem_of(tmp_path, f"{SHOP}watchlists = 1")
