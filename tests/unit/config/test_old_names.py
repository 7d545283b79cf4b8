"""A setting with an old name stops the start; the one error has the new name."""

from pathlib import Path

import pytest

from snorky.gateway.config.old_names import SETTINGS
from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.config.service_tables import STANDARD_BACKEND
from snorky.gateway.config.settings import load
from snorky.gateway.config.sources import Key, variable_of
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.sdk.loading import load_registries
from snorky.services.pubsub import PubSubBackend, PubSubService

VALUES = {"identify": '"shop.sessions:user_of"'}  # for all others: 7


class ShopBackend(PubSubBackend):
    """A subclass whose constructor has the new name."""


class OldShopBackend(PubSubBackend):
    """A class of a user, whose own option has a name that was one of ours."""

    def __init__(self, name: str, frontend: str) -> None:
        super().__init__(name, frontend)


def error_of(toml: str, tmp_path: Path, **environ: str) -> str:
    path = tmp_path / "snorky.toml"
    path.write_text(toml)
    with pytest.raises(ConfigurationError) as caught:
        load_registries(load(path, environ))
    return str(caught.value)


@pytest.mark.parametrize(("old", "new"), SETTINGS.items(), ids=lambda key: ".".join(key))
def test_old_name_in_the_file_is_one_error_with_the_new_name(old: Key, new: Key, tmp_path: Path) -> None:
    table, name = old
    error = error_of(f"[{table}]\n{name} = {VALUES.get(name, 7)}\n", tmp_path)
    assert error == f"{tmp_path}/snorky.toml: [{table}] {name}: is now called {new[1]}; write [{table}] {new[1]}"


@pytest.mark.parametrize(("old", "new"), SETTINGS.items(), ids=lambda key: ".".join(key))
def test_old_variable_is_one_error_with_the_new_one(old: Key, new: Key, tmp_path: Path) -> None:
    value = VALUES.get(old[1], "7").strip('"')
    error = error_of("", tmp_path, **{variable_of(old): value})
    assert error == f"{variable_of(old)}: is now called {new[1]}; write {variable_of(new)}"


@pytest.mark.parametrize(("old", "new"), SETTINGS.items(), ids=lambda key: ".".join(key))
def test_misspelt_old_variable_is_an_error_with_the_new_one(old: Key, new: Key, tmp_path: Path) -> None:
    variable = variable_of(old).replace("__", "_")
    assert error_of("", tmp_path, **{variable: "7"}) == f"{variable}: unknown setting; did you mean {variable_of(new)}?"


def test_old_variable_of_a_mounted_file_names_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "hook").write_text("shop.sessions:user_of\n")
    error = error_of("", tmp_path, SNORKY_AUTH__IDENTIFY_FILE=f"{tmp_path}/hook")
    assert error == "SNORKY_AUTH__IDENTIFY_FILE: is now called identify_hook; write SNORKY_AUTH__IDENTIFY_HOOK_FILE"


def test_what_an_old_name_sets_is_not_reported_as_missing(tmp_path: Path) -> None:
    error = error_of('[auth]\nrequired = true\nidentify = "shop.sessions:user_of"\n', tmp_path)
    assert error.endswith("[auth] identify: is now called identify_hook; write [auth] identify_hook")
    assert len(error.splitlines()) == 1


def test_old_and_new_name_together_are_one_error(tmp_path: Path) -> None:
    error = error_of("[auth]\ndeadline_s = 2\ntimeout_s = 3\n", tmp_path)
    assert error.endswith("[auth] deadline_s: is now called timeout_s; write [auth] timeout_s")
    assert len(error.splitlines()) == 1


def test_old_name_in_a_channel_rule_is_one_error_with_the_new_name(tmp_path: Path) -> None:
    toml = """
        [services.pubsub]
        class = "snorky.services.pubsub:PubSubService"
        channels = [{match = "a", notices = true}]
    """
    expected = "channels, rule 1: notices is now called join_leave; write join_leave = true"
    assert error_of(toml, tmp_path) == f"[services.pubsub] {expected}"
    with pytest.raises(ConfigurationError, match=expected):
        Rules.read([{"match": "a", "notices": True}])
    assert PubSubService("pubsub", channels=[ChannelRule("a", presence=True, join_leave=True)])


@pytest.mark.parametrize(
    "name",
    [
        *(table.class_name for table in STANDARD_BACKEND.values() if "service" in table.options),
        f"{__name__}:ShopBackend",
    ],
)
def test_old_option_of_a_backend_service_is_one_error_with_the_new_name(name: str, tmp_path: Path) -> None:
    error = error_of(f'[backend.shop]\nclass = "{name}"\nfrontend = "pubsub"\n', tmp_path)
    assert error == "[backend.shop] frontend is now called service; write service"
    environ = {"SNORKY_BACKEND__SHOP__CLASS": name, "SNORKY_BACKEND__SHOP__FRONTEND": "pubsub"}
    assert error_of("", tmp_path, **environ) == "[backend.shop] frontend is now called service; write service"


def test_option_of_a_user_may_have_an_old_name_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "snorky.toml"
    path.write_text(f'[backend.shop]\nclass = "{__name__}:OldShopBackend"\nfrontend = "pubsub"\n')
    _, private = load_registries(load(path, {}))
    assert "shop" in private
