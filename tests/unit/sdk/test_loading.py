import sys

import pytest

from snorky.gateway.config.settings import ServiceTable, Settings
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.sdk.loading import load_function, load_registries

MODULE = """
from snorky.gateway import Service

class Echo(Service):
    def __init__(self, name, greeting="hello"):
        super().__init__(name)
        self.greeting = greeting
    def on_message(self, connection, message):
        pass

class Broken(Echo):
    def __init__(self, name):
        raise RuntimeError("no database")

class Stranger:
    pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_services.py").write_text(MODULE)
    (tmp_path / "needs_more.py").write_text("import module_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_services"
    for name in ("own_services", "needs_more"):
        sys.modules.pop(name, None)


def test_standard_services_are_loaded_by_name():
    public, private = load_registries(Settings())
    found = {service.name: type(service).__name__ for service in public}
    assert found.items() >= {"pubsub": "PubSubService", "auth": "AuthService"}.items()
    found = {service.name: type(service).__name__ for service in private}
    assert found.items() >= {"pubsub_backend": "PubSubBackend", "auth_backend": "AuthBackend"}.items()


def test_other_keys_are_passed_to_the_constructor(module):
    settings = Settings(services={"echo": ServiceTable(f"{module}:Echo", {"greeting": "ahoy"})}, backend={})
    public, private = load_registries(settings)
    assert public["echo"].greeting == "ahoy"
    assert list(private) == []


@pytest.mark.parametrize(
    ("class_name", "options", "expected"),
    [
        ("no_such_module:Echo", {}, "there is no module no_such_module; install it, or put its folder on PYTHONPATH"),
        ("own_services.deeper:Echo", {}, "there is no module own_services.deeper"),
        ("needs_more:Echo", {}, "failed with ModuleNotFoundError: No module named 'module_that_is_not_there'"),
        ("own_services:Ecko", {}, "the module has no Ecko"),
        ("own_services:Stranger", {}, "is no subclass of snorky.gateway.Service"),
        ("own_services:Echo", {"greting": 1}, "got an unexpected keyword argument 'greting'; it takes greeting"),
        ("own_services:Broken", {}, "failed with RuntimeError: no database"),
    ],
)
def test_service_that_does_not_load_is_reported_with_its_table(module, class_name, options, expected):
    settings = Settings(services={"echo": ServiceTable(class_name, options)}, backend={})
    with pytest.raises(ConfigurationError) as caught:
        load_registries(settings)
    assert str(caught.value).startswith("[services.echo] ")
    assert expected in str(caught.value)


def test_every_service_that_does_not_load_is_reported(module):
    broken = ServiceTable("own_services:Stranger")
    with pytest.raises(ConfigurationError) as caught:
        load_registries(Settings(services={"a": broken, "b": broken}, backend={"c": broken}))
    assert [line.partition(" ")[0] for line in str(caught.value).splitlines()] == [
        "[services.a]",
        "[services.b]",
        "[backend.c]",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("own_services:Echo", "the module has no async function Echo"),
        ("own_services:missing", "the module has no async function missing"),
        ("no_such_module:who", "is it on PYTHONPATH?"),
        ("needs_more:who", "its module failed with"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_reported_with_its_setting(module, name, expected):
    with pytest.raises(ConfigurationError) as caught:
        load_function("[auth] identify_hook", name)
    assert str(caught.value).startswith(f'[auth] identify_hook = "{name}": ')
    assert expected in str(caught.value)
