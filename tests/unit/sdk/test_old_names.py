"""gateway/sdk/old_names.py: old names in settings and programs are errors with the new name; a shop may have these."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snorky.gateway.config.settings import ServiceTable, Settings
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.sdk.loading import load_function, load_registries
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.gateway.sdk.service import Service
from snorky.services.auth import AuthService

ROOT = Path(__file__).resolve().parents[3]
MODULE = """
from snorky.gateway import Service

class Echo(Service):
    def on_message(self, connection, message):
        pass
"""


def load(class_name: str) -> type[Service] | str:
    """Load one service by its name in the settings; returns its class, or the error."""
    try:
        return type(load_registries(Settings(services={"own": ServiceTable(class_name)}, backend={}))[0]["own"])
    except ConfigurationError as error:
        return str(error)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A shop's folder, first on the path. The names of its packages are ours of old: none that is loaded stays."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("gateway", "services")]:
            del sys.modules[name]

    forget()
    yield tmp_path
    forget()


OLD = [
    ("services.pubsub:PubSubService", "services.pubsub is now snorky.services.pubsub"),
    ("services.rpc:RPCService", "services.rpc is now snorky.services.rpc"),
    ("services.pubsub.service:PubSubService", "services.pubsub.service is now snorky.services.pubsub.service"),
]


@pytest.mark.parametrize(("class_name", "expected"), OLD)
def test_old_name_of_ours_is_told_with_the_new_one(shop: Path, class_name: str, expected: str) -> None:
    assert load(class_name) == (
        f'[services.own] class = "{class_name}": {expected}: write class = "snorky.{class_name}"'
    )


@pytest.mark.parametrize(("class_name", "expected"), OLD)
def test_old_name_is_told_also_where_a_shop_has_a_folder_of_this_name(
    shop: Path, class_name: str, expected: str
) -> None:
    for name in ("services", "gateway"):
        (shop / name).mkdir()
        (shop / name / "__init__.py").write_text("")
    assert f"{expected}: write" in str(load(class_name))


def test_shop_has_modules_of_our_old_names(shop: Path) -> None:
    (shop / "services").mkdir()
    for name in ("__init__", "orders", "pubsub"):
        (shop / "services" / f"{name}.py").write_text(MODULE.replace("Echo", "PubSubService"))
    (shop / "gateway.py").write_text(MODULE)
    for module, name in (
        ("services", "PubSubService"),
        ("services.orders", "PubSubService"),
        ("services.pubsub", "PubSubService"),
        ("gateway", "Echo"),
    ):
        loaded = load(f"{module}:{name}")
        assert not isinstance(loaded, str), loaded
        assert (loaded.__module__, loaded.__name__) == (module, name)
    assert "the module has no Ecko" in str(load("services.pubsub:Ecko"))
    assert "there is no module services.nothing" in str(load("services.nothing:Echo"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from gateway import Service", "; gateway is now snorky.gateway"),
        ("from services.rpc import RPCService", "; services is now snorky.services"),
        ("from snorky import Publisher", "; snorky is now snorky.client"),
        ("from snorky.aio import Publisher", "; snorky.aio is now snorky.client.aio"),
        ("import services_of_others", "No module named 'services_of_others'"),
        ("from snorky.gateway import nobody", "gateway/__init__.py)"),
    ],
)
def test_program_that_imports_an_old_name_is_told_the_new_one(
    shop: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: str
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path or ".").resolve() != ROOT])
    (shop / "old_program.py").write_text(line)
    said = str(load("old_program:Echo"))
    sys.modules.pop("old_program", None)
    assert said.endswith(expected)
    with pytest.raises(ConfigurationError) as caught:
        load_function("[auth] identify_hook", "old_program:who")
    help_ = expected if expected.startswith("; ") else "; is it on PYTHONPATH?"
    assert str(caught.value).endswith(help_)


class Login(Service):
    """A service as a user has it."""

    def on_message(self, connection: object, message: object) -> None:
        pass


class OpenOfOld(Login):
    is_open = True  # type: ignore[assignment]


class ClosedOfOld(AuthService):  # ignoring this one would leave the service usable without authentication
    is_open = False  # type: ignore[assignment]


class MixedIn(OpenOfOld):
    pass


class NoticesOfOld(Login):
    def has_roster_notices(self, channel: object) -> bool:  # type: ignore[override]
        return False


class SetsOnInstance(Login):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.is_open = False


@pytest.mark.parametrize(
    ("made", "old", "new"),
    [
        (OpenOfOld, "is_open", "allows_anonymous"),
        (ClosedOfOld, "is_open", "allows_anonymous"),
        (MixedIn, "is_open", "allows_anonymous"),
        (NoticesOfOld, "has_roster_notices", "sends_presence_events"),
        (SetsOnInstance, "is_open", "allows_anonymous"),
    ],
)
def test_service_with_an_old_attribute_is_refused_with_the_new_name(made: type[Service], old: str, new: str) -> None:
    expected = f"{made.__name__}.{old} is now called {new}: rename it"
    with pytest.raises(ConfigurationError) as caught:
        ServiceRegistry([made("own")])
    assert str(caught.value) == expected
    assert load(f"{__name__}:{made.__name__}") == f"[services.own] {expected}"


def test_old_attribute_set_later_is_an_error_and_so_is_reading_it() -> None:
    service = Login("own")
    ServiceRegistry([service])
    with pytest.raises(ConfigurationError, match="allows_anonymous"):
        service.is_open = False
    with pytest.raises(AttributeError, match="allows_anonymous"):
        print(service.is_open)
    with pytest.raises(AttributeError, match="sends_presence_events"):
        service.has_roster_notices("channel")


def test_a_refused_service_is_not_registered() -> None:
    registry = ServiceRegistry()
    with pytest.raises(ConfigurationError):
        registry.register(OpenOfOld("own"))
    assert "own" not in registry
