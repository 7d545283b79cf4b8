"""Apps of Pusher's clients: their parts, from the file and the environment, and the rules that they add to services."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from snorky.gateway import ChannelRule, Rules
from snorky.gateway.config.pusher import RULES, PusherApp, parse_pusher_apps, with_rules
from snorky.gateway.config.service_tables import STANDARD_SERVICES, ServiceTable
from snorky.gateway.config.settings import Settings, load
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.sdk.loading import load_registries
from snorky.services.pubsub import PubSubService
from tests.support.scenarios.settings_files import load_toml, only_problem_of

SECRET = "8d2a5c1f07b94e63a1d8c2f4956be370"
SHOP = f'[public.pusher_apps.shop]\nkey = "shop-key"\nsecret = "{SECRET}"\n'
VARIABLE = "SNORKY_PUBLIC__PUSHER_APPS"
PUBSUB = "snorky.services.pubsub:PubSubService"
APP = PusherApp(id="shop", key="shop-key", secret=SECRET)


def apps_of(settings: Settings) -> dict[str, PusherApp]:
    return dict(settings.public.pusher_apps or {})


# -- parts ------------------------------------------------------------------------------------------------------------


def test_app_has_its_parts_and_shows_no_secret(tmp_path: Path) -> None:
    assert apps_of(load_toml(tmp_path, SHOP)) == {"shop": APP}
    text = f'{SHOP}service = "news"\nclient_events = false\ndata_max_bytes = 1000\n[services.news]\nclass = "{PUBSUB}"'
    settings = load_toml(tmp_path, text)
    app = apps_of(settings)["shop"]
    assert (app.service, app.client_events, app.data_max_bytes) == ("news", False, 1000)
    assert SECRET not in repr(settings) and SECRET not in str(app)


def test_without_apps_there_are_none_and_no_rules(tmp_path: Path) -> None:
    assert load(None, {}).public.pusher_apps is None
    for settings in (load(None, {}), load_toml(tmp_path, "[public.pusher_apps]")):
        public, _ = load_registries(settings)
        service = public["pubsub"]
        assert isinstance(service, PubSubService) and list(service.rules) == []


def test_environment_has_the_same_parts(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    for environ in (
        {f"{VARIABLE}__SHOP__KEY": "shop-key", f"{VARIABLE}__SHOP__SECRET": SECRET},
        {f"{VARIABLE}__SHOP__KEY": "shop-key", f"{VARIABLE}__SHOP__SECRET_FILE": str(path)},
        {VARIABLE: json.dumps({"shop": {"key": "shop-key", "secret": SECRET}})},
    ):
        assert apps_of(load(None, environ)) == {"shop": APP}


def test_parts_of_the_environment_have_the_types_of_the_file() -> None:
    digits = "31415926535897932384626433832795"
    environ = {
        f"{VARIABLE}__SHOP__KEY": "12",
        f"{VARIABLE}__SHOP__SECRET": digits,
        f"{VARIABLE}__SHOP__CLIENT_EVENTS": "false",
        f"{VARIABLE}__SHOP__DATA_MAX_BYTES": "100",
    }
    expected = PusherApp(id="shop", key="12", secret=digits, client_events=False, data_max_bytes=100)
    assert apps_of(load(None, environ)) == {"shop": expected}


def test_environment_overrides_one_part_of_the_file_and_adds_apps(tmp_path: Path) -> None:
    other = SECRET[::-1]
    settings = load_toml(
        tmp_path,
        SHOP,
        **{
            f"{VARIABLE}__SHOP__SECRET": other,
            f"{VARIABLE}__SHOP__SERVICE": "pubsub",
            f"{VARIABLE}__WEB__KEY": "web-key",
            f"{VARIABLE}__WEB__SECRET": SECRET,
            f"{VARIABLE}__WEB__SERVICE": "pubsub",
        },
    )
    assert apps_of(settings) == {
        "shop": PusherApp(id="shop", key="shop-key", secret=other),
        "web": PusherApp(id="web", key="web-key", secret=SECRET),
    }


def test_file_of_a_secret_that_is_missing_is_reported(tmp_path: Path) -> None:
    problem = only_problem_of(tmp_path, SHOP, **{f"{VARIABLE}__SHOP__SECRET_FILE": str(tmp_path / "nothing")})
    assert f"{VARIABLE}__SHOP__SECRET_FILE: the file it names cannot be read" in problem


def test_apps_that_are_written_twice_are_refused(tmp_path: Path) -> None:
    web = json.dumps({"web": {"key": "web-key", "secret": SECRET}})
    assert "are both set; unset one of them" in only_problem_of(tmp_path, SHOP, **{VARIABLE: web})
    twice = {f"{VARIABLE}__SHOP__SECRET": SECRET, f"{VARIABLE}__SHOP__SECRET_FILE": "/nothing"}
    assert "are both set; unset one of them" in only_problem_of(tmp_path, SHOP, **twice)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ('key = "a"', 'needs secret; write secret = "..."'),
        (f'secret = "{SECRET}"', 'needs key; write key = "..."'),
        (f'key = 7\nsecret = "{SECRET}"', "has a wrong key: expected `str`"),
        (f'key = ""\nsecret = "{SECRET}"', "has a wrong key"),
        (f'key = "a b"\nsecret = "{SECRET}"', "has a wrong key"),
        (f'key = "a/b"\nsecret = "{SECRET}"', "has a wrong key"),
        (f'key = "{"a" * 65}"\nsecret = "{SECRET}"', "has a wrong key"),
        ('key = "a"\nsecret = 7', "has a wrong secret: expected `str`"),
        ('key = "a"\nsecret = ""', "has a wrong secret"),
        ('key = "a"\nsecret = "short"', "too easy to guess"),
        (f'key = "a"\nsecret = "{"ab" * 40}"', "openssl rand -hex 32"),
        (f'key = "a"\nsecret = "{SECRET}\\u200b"', "U+200B"),
        (f'key = "a"\nsecret = "{SECRET * 8}"', "has a wrong secret"),
        (f'key = "a"\nsecret = "{SECRET}"\nservice = "Pub Sub"', "has a wrong service"),
        (f'key = "a"\nsecret = "{SECRET}"\nclient_events = 1', "has a wrong client_events: expected `bool`"),
        (f'key = "a"\nsecret = "{SECRET}"\ndata_max_bytes = 63', "has a wrong data_max_bytes"),
        (f'key = "a"\nsecret = "{SECRET}"\ndata_max_bytes = 1000001', "has a wrong data_max_bytes"),
        (f'key = "a"\nsecret = "{SECRET}"\ncluster = "eu"', "has the unknown part 'cluster'; known are key, secret"),
        (f'key = "a"\nsecret = "{SECRET}"\nid = "other"', "has the unknown part 'id'"),
    ],
)
def test_part_that_is_wrong_is_reported_with_the_app_and_without_the_secret(
    tmp_path: Path, parts: str, expected: str
) -> None:
    problem = only_problem_of(tmp_path, f"[public.pusher_apps.shop]\n{parts}")
    assert "[public.pusher_apps.shop]" in problem and "the app shop " in problem and expected in problem
    assert SECRET not in problem


@pytest.mark.parametrize(
    "environ",
    [
        {VARIABLE: "no json"},
        {VARIABLE: "[]"},
        {VARIABLE: '{"shop": "text"}'},
        {f"{VARIABLE}__SHOP": "text"},
        {f"{VARIABLE}__SHOP__KEY__MORE": "text"},
    ],
)
def test_variable_that_is_no_table_of_apps_is_reported(tmp_path: Path, environ: dict[str, str]) -> None:
    assert only_problem_of(tmp_path, **environ).startswith(next(iter(environ)))


@pytest.mark.parametrize("text", ["[public]\npusher_apps = 7", '[public.pusher_apps]\nshop = "a"', SHOP[:26]])
def test_file_that_has_no_table_of_apps_is_reported(tmp_path: Path, text: str) -> None:
    assert "pusher_apps" in only_problem_of(tmp_path, text)


def test_id_of_an_app_has_the_characters_of_a_url(tmp_path: Path) -> None:
    problem = only_problem_of(tmp_path, SHOP.replace("apps.shop", 'apps."a b"'))
    assert "other characters than A-Z a-z 0-9 _ -" in problem
    assert "other characters" in only_problem_of(tmp_path, SHOP.replace("apps.shop", f"apps.{'a' * 65}"))


def test_no_two_apps_have_the_same_key(tmp_path: Path) -> None:
    """Otherwise the key would not say whose secret signs."""
    problem = only_problem_of(tmp_path, SHOP + SHOP.replace("apps.shop", "apps.web"))
    assert "the apps shop and web have the same key" in problem


# -- rules ------------------------------------------------------------------------------------------------------------


def completed(*own: Any, service: str = "pubsub", app: PusherApp = APP) -> Any:
    """Return the channels of a service with these rules of its own, as an app completes them."""
    table = ServiceTable(PUBSUB, {"channels": list(own)})
    return with_rules(service, table, {app.id: app}).options["channels"]


def test_rules_are_valid_and_in_the_order_that_finds_them() -> None:
    rules: Rules[ChannelRule] = Rules.read(RULES)
    for written in RULES:
        name = str(written["match"]).replace("*", "a")
        found = rules.find(name)
        assert {part: getattr(found, part) for part in written} == dict(written)


def test_service_without_rules_of_its_own_has_these(tmp_path: Path) -> None:
    assert with_rules("pubsub", ServiceTable(PUBSUB), {"shop": APP}).options["channels"] == [*map(dict, RULES)]
    public, _ = load_registries(load_toml(tmp_path, SHOP))
    service = public["pubsub"]
    assert isinstance(service, PubSubService)
    assert [rule.match for rule in service.rules] == [rule["match"] for rule in RULES]


def test_rules_are_not_in_the_settings(tmp_path: Path) -> None:
    """Else a reload would compare written rules with added ones."""
    assert dict(load_toml(tmp_path, SHOP).services) == STANDARD_SERVICES


@pytest.mark.parametrize("wide", ["*", "p*", "*-room", "pres*", "#*", "{identity}"])
def test_own_rules_come_first_up_to_one_that_would_open_private_channels(wide: str) -> None:
    own: list[dict[str, Any]] = [{"match": "kept.*"}, {"match": wide, "history": 7}, {"match": "other"}]
    assert completed(*own) == [own[0], *map(dict, RULES), *own[1:]]
    assert completed(own[2], own[0]) == [own[2], own[0], *map(dict, RULES)]


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (
            {"match": "private-orders.*", "history": 10},
            {"history": 10, "allow_subscribe": "token", "allow_publish": "token"},
        ),
        ({"match": "private-*", "history": 10}, {"history": 10, "allow_subscribe": "token"}),
        (
            {"match": "presence-*", "allow_publish": "nobody"},
            {"presence": True, "join_leave": True, "allow_subscribe": "token", "allow_publish": "nobody"},
        ),
        ({"match": "private-open", "allow_subscribe": "anyone"}, {"allow_subscribe": "anyone"}),
        ({"match": "cache-*", "history": 3}, {"history": 3, "history_ttl_s": 300.0, "allow_publish": "nobody"}),
        ({"match": "cache-a", "allow_subscribe": "anyone"}, {"history_ttl_s": 1800.0, "allow_subscribe": "anyone"}),
        ({"match": "#server-to-user-*", "history": 5}, {"history": 5, "allow_subscribe": "token"}),
        ({"match": "news", "history": 5}, {"history": 5, "allow_subscribe": None, "presence": False}),
    ],
)
def test_own_rule_for_such_channels_keeps_what_it_does_not_write(own: dict[str, Any], expected: Any) -> None:
    """Else a rule with nothing but a history would open private channels to all clients."""
    first, *rest = completed(own)
    (rule,) = Rules[ChannelRule].read([first])
    assert rule.match == own["match"] and rest == [dict(each) for each in RULES]
    assert {name: getattr(rule, name) for name in expected} == expected


def test_only_services_of_apps_get_rules() -> None:
    news = PusherApp(id="shop", key="shop-key", secret=SECRET, service="news")
    assert completed({"match": "a"}, app=news) == [{"match": "a"}]
    assert completed(service="news", app=news) == completed()


def test_service_that_is_missing_is_reported(tmp_path: Path) -> None:
    problem = only_problem_of(tmp_path, f'{SHOP}service = "news"')
    assert "[public] pusher_apps" in problem and "shop needs the service news" in problem


def test_several_apps_name_their_services(tmp_path: Path) -> None:
    """Otherwise clients of one app would receive another app's publications, which no setting asks for."""
    web = SHOP.replace("shop", "web")
    assert 'write service = "NAME" for each' in only_problem_of(tmp_path, SHOP + web)
    assert 'write service = "NAME" for each' in only_problem_of(tmp_path, f'{SHOP}service = "pubsub"\n{web}')
    settings = load_toml(tmp_path, f'{SHOP}service = "pubsub"\n{web}service = "pubsub"')
    assert {each.service for each in apps_of(settings).values()} == {"pubsub"}


@pytest.mark.parametrize("own", [7, "text", ["text"], [{"match": 7}], [{"match": "{wrong}"}], [None]])
def test_rules_that_are_wrong_are_left_to_the_service(tmp_path: Path, own: Any) -> None:
    environ = {"SNORKY_SERVICES__PUBSUB__CLASS": PUBSUB, "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(own)}
    with pytest.raises(ConfigurationError, match=r"\[services.pubsub\] channels"):
        load_registries(load_toml(tmp_path, SHOP, **environ))


def test_secrets_in_the_form_of_hosted_pusher_are_accepted() -> None:
    for seed in range(500):
        secret = hashlib.sha256(b"%d" % seed).hexdigest()[:20]
        assert parse_pusher_apps({"shop": {"key": "a", "secret": secret}})["shop"].secret == secret
