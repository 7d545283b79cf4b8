"""Keys of backends: names, services that they may call, and how the environment overrides the file."""

import json
from pathlib import Path

import pytest

from snorky.gateway.config.settings import Private, load
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.runtime.gateway import Gateway
from snorky.gateway.sdk.key_services import problems_of_keys
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.services.control import ControlBackend
from snorky.services.pubsub import PubSubBackend
from tests.support.scenarios.settings_files import SECRET, load_toml, only_problem_of, problems_of

JOBS = f'[private.api_keys.jobs]\nkey = "{SECRET} of jobs"\nservices = ["pubsub_backend"]\n'
VARIABLE = "SNORKY_PRIVATE__API_KEYS__JOBS"


def services_of(private: Private, name: str = "jobs") -> frozenset[str] | None:
    return private.keys[name].services


def test_a_key_permits_the_services_that_it_names_and_a_text_permits_all(tmp_path: Path) -> None:
    private = load_toml(tmp_path, f'[private.api_keys]\nweb = "{SECRET} of web"\n{JOBS}').private
    assert private.key_name(f"{SECRET} of jobs") == "jobs"
    assert private.permits("jobs", "pubsub_backend") and not private.permits("jobs", "control")
    assert private.permits("web", "pubsub_backend") and private.permits("web", "control")
    without_services = load_toml(tmp_path, f'[private.api_keys.jobs]\nkey = "{SECRET}"').private
    assert without_services.permits("jobs", "control")
    assert SECRET not in repr(private)


def test_without_a_key_every_service_may_be_called() -> None:
    private = Private()
    assert private.key_name("anything") == "none" and private.permits("none", "control")


def test_the_environment_has_the_same_parts(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{SECRET}\n")
    services = '["control", "pubsub_backend"]'
    for environ in (
        {VARIABLE: SECRET, f"{VARIABLE}__SERVICES": services},
        {f"{VARIABLE}_FILE": str(path), f"{VARIABLE}__SERVICES": services},
        {f"{VARIABLE}__KEY_FILE": str(path), f"{VARIABLE}__SERVICES": services},
        {"SNORKY_PRIVATE__API_KEYS": json.dumps({"jobs": {"key": SECRET, "services": json.loads(services)}})},
    ):
        private = load(None, environ).private
        assert private.key_name(SECRET) == "jobs"
        assert services_of(private) == {"control", "pubsub_backend"}


def test_a_key_of_the_environment_keeps_the_services_of_the_file(tmp_path: Path) -> None:
    for variable in (VARIABLE, f"{VARIABLE}__KEY"):
        private = load_toml(tmp_path, JOBS, **{variable: f"{SECRET}, a new one"}).private
        assert private.key_name(f"{SECRET}, a new one") == "jobs" and private.key_name(f"{SECRET} of jobs") is None
        assert services_of(private) == {"pubsub_backend"}
    text = f'[private.api_keys]\njobs = "{SECRET}"'
    private = load_toml(tmp_path, text, **{f"{VARIABLE}__SERVICES": '["control"]'}).private
    assert private.key_name(SECRET) == "jobs" and services_of(private) == {"control"}
    assert services_of(load_toml(tmp_path, JOBS, **{f"{VARIABLE}__SERVICES": '["control"]'}).private) == {"control"}
    assert load_toml(tmp_path, text, **{f"{VARIABLE}__KEY": f"{SECRET}!"}).private.key_name(f"{SECRET}!") == "jobs"


def test_a_key_of_digits_remains_a_text() -> None:
    key = "31415926535897932384626433832795"
    private = load(None, {f"{VARIABLE}__KEY": key, f"{VARIABLE}__SERVICES": '["control"]'}).private
    assert private.key_name(key) == "jobs"


def test_a_key_that_is_written_twice_is_refused(tmp_path: Path) -> None:
    problem = only_problem_of(tmp_path, **{VARIABLE: SECRET, f"{VARIABLE}__KEY": SECRET})
    assert problem == f"{VARIABLE} and {VARIABLE}__KEY are both set; unset one of them"
    assert "are both set" in only_problem_of(tmp_path, JOBS, SNORKY_PRIVATE__API_KEYS=f'{{"web": "{SECRET}"}}')


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ('services = ["control"]', 'write key = "KEY"'),
        ("key = 7", 'write key = "KEY"'),
        (f'key = "{SECRET}"\nservices = []', "or leave it out to permit all"),
        (f'key = "{SECRET}"\nservices = "control"', 'write services = ["pubsub_backend"]'),
        (f'key = "{SECRET}"\nservices = [7]', 'write services = ["pubsub_backend"]'),
        (f'key = "{SECRET}"\nservice = ["control"]', "unknown part service; known are key and services"),
        (f'key = "{SECRET}\\u200b"', "U+200B"),
        ('key = "a"', "openssl rand -hex 32"),
    ],
)
def test_a_part_that_is_wrong_is_reported_with_what_to_write(tmp_path: Path, parts: str, expected: str) -> None:
    problem = only_problem_of(tmp_path, f"[private.api_keys.jobs]\n{parts}")
    assert "[private.api_keys.jobs]" in problem and "the key jobs " in problem and expected in problem
    assert SECRET not in problem


@pytest.mark.parametrize("written", ["control", "", "null"])
def test_services_that_are_no_list_are_refused(tmp_path: Path, written: str) -> None:
    problem = only_problem_of(tmp_path, **{VARIABLE: SECRET, f"{VARIABLE}__SERVICES": written})
    assert f"{VARIABLE}__SERVICES" in problem and 'write services = ["pubsub_backend"]' in problem


@pytest.mark.parametrize("name", ["api_key", "none"])
def test_a_key_has_no_name_that_logs_give_to_others(tmp_path: Path, name: str) -> None:
    assert "give it another name" in only_problem_of(tmp_path, f'[private.api_keys]\n{name} = "{SECRET}"')


def test_no_key_has_two_names(tmp_path: Path) -> None:
    """Otherwise it would have the rights of one of them, and logs would not tell two backends apart."""
    text = f'[private.api_keys]\nweb = "{SECRET} of jobs"\n{JOBS}'
    assert "the keys web and jobs are the same" in only_problem_of(tmp_path, text)
    (problem,) = problems_of(tmp_path, f'[private]\napi_key = "{SECRET} of jobs"\n{JOBS}')
    assert "api_key is one of api_keys too" in problem


def test_an_unknown_service_of_a_key_is_reported_with_the_known_ones(tmp_path: Path) -> None:
    private = load_toml(tmp_path, JOBS.replace("pubsub_backend", "pubsub")).private
    (problem,) = problems_of_keys(private, [PubSubBackend(), ControlBackend()])
    assert problem == (
        "[private.api_keys.jobs] services: pubsub is not among the services for backends; write names of these: "
        "control, pubsub_backend"
    )
    assert problems_of_keys(load_toml(tmp_path, JOBS).private, [PubSubBackend()]) == []


def test_a_node_does_not_start_with_a_key_of_an_unknown_service(tmp_path: Path) -> None:
    Gateway(load_toml(tmp_path, JOBS))
    settings = load_toml(tmp_path, JOBS.replace("pubsub_backend", "pubsub"))
    with pytest.raises(ConfigurationError, match="pubsub is not among the services for backends"):
        Gateway(settings)
    own = ServiceRegistry([PubSubBackend("pubsub")])
    Gateway(settings, private=own)
