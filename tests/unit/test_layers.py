"""Checks the layers: every file of `gateway` and `services` imports only from layers below its own.

`FLOORS` is the only source; a file that it does not list is a failure, so every new file gets a layer.
Imports are read from the syntax tree: those in functions and under TYPE_CHECKING count too.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FLOORS = {
    "gateway/_version.py": 0,
    "gateway/errors.py": 0,
    "gateway/old_names.py": 0,
    "gateway/secret_values.py": 0,
    "gateway/origins.py": 0,
    "gateway/auth_settings.py": 1,
    "gateway/canonical.py": 1,
    "gateway/codec.py": 1,
    "gateway/frames.py": 1,
    "gateway/identity.py": 1,
    "gateway/limiter.py": 1,
    "gateway/log_queue.py": 1,
    "gateway/logs.py": 1,
    "gateway/metrics.py": 1,
    "gateway/publication.py": 1,
    "gateway/rules.py": 1,
    "gateway/setting_values.py": 1,
    "gateway/settings.py": 1,
    "gateway/socket_directory.py": 1,
    "gateway/sources.py": 1,
    "gateway/standard_streams.py": 1,
    "gateway/shared_reads.py": 1,
    "gateway/totals.py": 1,
    "gateway/waiting.py": 1,
    "gateway/auth.py": 2,
    "gateway/compound.py": 2,
    "gateway/connection.py": 2,
    "gateway/refusals.py": 2,
    "gateway/revocation.py": 2,
    "gateway/shares.py": 2,
    "gateway/quotas.py": 2,
    "gateway/authenticator.py": 3,
    "gateway/broker.py": 3,
    "gateway/directory.py": 3,
    "gateway/ownership.py": 3,
    "gateway/presence.py": 3,
    "gateway/presences.py": 3,
    "gateway/primitives.py": 3,
    "gateway/fanout.py": 3,
    "gateway/history.py": 3,
    "gateway/filling.py": 3,
    "gateway/hub.py": 3,
    "gateway/passes.py": 3,
    "gateway/pieces.py": 3,
    "gateway/repair.py": 3,
    "gateway/unkept.py": 3,
    "gateway/sequence.py": 3,
    "gateway/key_cache.py": 3,
    "gateway/sessions.py": 3,
    "gateway/service.py": 3,
    "gateway/topics.py": 3,
    "gateway/inbox.py": 3,
    "gateway/info.py": 4,
    "gateway/notices.py": 4,
    "gateway/registry.py": 4,
    "gateway/subscriptions.py": 4,
    "gateway/redis/": 4,
    "gateway/loading.py": 5,
    "gateway/node.py": 5,
    "gateway/http/": 6,
    "gateway/cli.py": 7,
    "gateway/commands/": 7,
    "gateway/process.py": 7,
    "gateway/running.py": 7,
    "gateway/server.py": 7,
    "gateway/stop_signals.py": 7,
    "gateway/supervisor.py": 7,
    "gateway/__init__.py": 8,  # the public names
}

# Two files of one layer, the second below the first.
NEIGHBOURS = {
    ("gateway/codec.py", "gateway/canonical.py"),
    ("gateway/frames.py", "gateway/codec.py"),
    ("gateway/auth_settings.py", "gateway/setting_values.py"),
    ("gateway/quotas.py", "gateway/connection.py"),
    ("gateway/quotas.py", "gateway/refusals.py"),
    ("gateway/quotas.py", "gateway/shares.py"),
    ("gateway/logs.py", "gateway/log_queue.py"),
    ("gateway/metrics.py", "gateway/logs.py"),
    ("gateway/settings.py", "gateway/auth_settings.py"),
    ("gateway/settings.py", "gateway/setting_values.py"),
    ("gateway/settings.py", "gateway/sources.py"),
    ("gateway/fanout.py", "gateway/hub.py"),
    ("gateway/fanout.py", "gateway/passes.py"),
    ("gateway/fanout.py", "gateway/pieces.py"),
    ("gateway/fanout.py", "gateway/sequence.py"),
    ("gateway/passes.py", "gateway/hub.py"),
    ("gateway/pieces.py", "gateway/hub.py"),
    ("gateway/pieces.py", "gateway/passes.py"),
    ("gateway/filling.py", "gateway/history.py"),
    ("gateway/filling.py", "gateway/sequence.py"),
    ("gateway/repair.py", "gateway/filling.py"),
    ("gateway/repair.py", "gateway/history.py"),
    ("gateway/repair.py", "gateway/sequence.py"),
    ("gateway/repair.py", "gateway/unkept.py"),
    ("gateway/unkept.py", "gateway/history.py"),
    ("gateway/presence.py", "gateway/directory.py"),
    ("gateway/presences.py", "gateway/directory.py"),
    ("gateway/presences.py", "gateway/presence.py"),
    ("gateway/authenticator.py", "gateway/sessions.py"),
    ("gateway/primitives.py", "gateway/authenticator.py"),
    ("gateway/ownership.py", "gateway/directory.py"),
    ("gateway/primitives.py", "gateway/directory.py"),
    ("gateway/primitives.py", "gateway/fanout.py"),
    ("gateway/primitives.py", "gateway/history.py"),
    ("gateway/primitives.py", "gateway/ownership.py"),
    ("gateway/topics.py", "gateway/fanout.py"),
    ("gateway/topics.py", "gateway/history.py"),
    ("gateway/topics.py", "gateway/primitives.py"),
    ("gateway/service.py", "gateway/directory.py"),
    ("gateway/service.py", "gateway/primitives.py"),
    ("gateway/service.py", "gateway/topics.py"),
    ("gateway/publication.py", "gateway/codec.py"),
    ("gateway/cli.py", "gateway/commands/"),
    ("gateway/commands/", "gateway/server.py"),
    ("gateway/server.py", "gateway/running.py"),
    ("gateway/process.py", "gateway/server.py"),
    ("gateway/process.py", "gateway/stop_signals.py"),
    ("gateway/supervisor.py", "gateway/stop_signals.py"),
    ("gateway/supervisor.py", "gateway/process.py"),
    ("gateway/commands/", "gateway/process.py"),
    ("gateway/commands/", "gateway/supervisor.py"),
}

# Foreign packages that only one folder may import.
HOMES = {"redis": "gateway/redis/", "hiredis": "gateway/redis/", "aiohttp": "gateway/http/"}


def place_of(path: str) -> str:
    """Return the entry of FLOORS for a file: its folder's, or its own."""
    return next((place for place in FLOORS if place.endswith("/") and path.startswith(place)), path)


@cache
def imports_of(source: str, path: str) -> list[tuple[int, str, str]]:
    """Return (line, module, imported name or "") of every import."""
    return list(_imports(ast.parse(source, path), path))


def _imports(tree: ast.Module, path: str) -> Iterator[tuple[int, str, str]]:
    package = ["snorky", *path.removesuffix("/__init__.py").removesuffix(".py").split("/")]
    if not path.endswith("__init__.py"):
        package = package[:-1]
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield statement.lineno, alias.name, ""
        elif isinstance(statement, ast.ImportFrom):
            base = package[: len(package) - statement.level + 1] if statement.level else []
            module = ".".join([*base, *filter(None, [statement.module])])
            for alias in statement.names:
                yield statement.lineno, module, alias.name


def file_of(sources: Mapping[str, str], module: str, name: str) -> str:
    """Find the file that `from module import name` refers to."""
    path = module.removeprefix("snorky.").replace(".", "/")
    for candidate in ([f"{path}/{name}.py", f"{path}/{name}/__init__.py"] if name else []) + [f"{path}.py"]:
        if candidate in sources:
            return candidate
    return f"{path}/__init__.py"


@cache
def public_names(source: str) -> set[str]:
    """Read __all__."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(statement.value))
    return set()


@cache
def tree() -> Mapping[str, str]:
    """Read every file of both packages."""
    files = [*ROOT.glob("gateway/**/*.py"), *ROOT.glob("services/**/*.py")]
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in sorted(files)}


def violations(sources: Mapping[str, str]) -> list[str]:
    """Return every import that the layers forbid, and every file without a layer. sources: by path."""
    found = []
    exported = public_names(sources["gateway/__init__.py"])
    for path, source in sources.items():
        place = place_of(path)
        if path.startswith("gateway/") and place not in FLOORS:
            found.append(f"{path}: has no floor; add it to FLOORS")
            continue
        for line, module, name in imports_of(source, path):
            reason = objection(sources, path, place, module, name, exported)
            if reason:
                found.append(f"{path}:{line}: {reason}")
    return found


def objection(sources: Mapping[str, str], path: str, place: str, module: str, name: str, exported: set[str]) -> str:
    """Return why this import is forbidden; "" if it is not."""
    top, _, rest = module.partition(".")
    if top in HOMES:
        return "" if place == HOMES[top] else f"{top} is known only in {HOMES[top]}"
    if top != "snorky":
        return ""
    ours = (rest or name).partition(".")[0]
    if path.startswith("services/"):
        if ours == "services" or (rest == "gateway" and name in exported):
            return ""
        return f"services import only what gateway exports in __all__, not {module} {name}".rstrip()
    if ours == "services":
        return "gateway never imports services; the settings name them"
    if ours != "gateway":
        return f"gateway never imports {module} {name}".rstrip()
    target = place_of(file_of(sources, module, name))
    if target not in FLOORS:
        return f"{target} has no floor"
    if FLOORS[target] < FLOORS[place] or (place, target) in NEIGHBOURS or (target == place and place.endswith("/")):
        return ""
    return f"{place} (floor {FLOORS[place]}) must not import {target} (floor {FLOORS[target]})"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "services").rglob("*.py")), ids=lambda each: str(each.relative_to(ROOT))
)
def test_service_is_a_few_lines_on_the_primitives(path):
    assert len(path.read_text().splitlines()) <= 200


def test_imports_respect_the_layers():
    assert violations(tree()) == []


def test_neighbours_form_no_circle():
    below: dict[str, set[str]] = {}
    for upper, lower in NEIGHBOURS:
        assert FLOORS[upper] == FLOORS[lower], f"{upper} and {lower} are on different floors: no pair is needed"
        below.setdefault(upper, set()).add(lower)
    while below:
        free = {upper for upper, lowers in below.items() if not lowers & set(below)}
        assert free, f"a circle among {sorted(below)}"
        for upper in free:
            del below[upper]


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("gateway/errors.py", "import snorky.gateway.codec", "must not import gateway/codec.py"),
        ("gateway/hub.py", "from snorky.gateway.node import Node", "must not import gateway/node.py"),
        ("gateway/hub.py", "from snorky.gateway import node", "must not import gateway/node.py"),
        ("gateway/hub.py", "from . import node", "must not import gateway/node.py"),
        ("gateway/hub.py", "from .http import takeover", "must not import gateway/http/"),
        ("gateway/hub.py", "from snorky.gateway.broker import Broker", "must not import gateway/broker.py (floor 3)"),
        ("gateway/redis/__init__.py", "from snorky.gateway.http import app", "must not import gateway/http/"),
        (
            "gateway/redis/__init__.py",
            "import snorky.gateway.registry",
            "must not import gateway/registry.py (floor 4)",
        ),
        ("gateway/node.py", "def late():\n    import snorky.gateway.server", "must not import gateway/server.py"),
        ("gateway/node.py", "from snorky.gateway import Service", "must not import gateway/__init__.py"),
        ("gateway/node.py", "import snorky.services.pubsub", "gateway never imports services"),
        ("gateway/node.py", "from snorky.services import pubsub", "gateway never imports services"),
        ("gateway/node.py", "from snorky import services", "gateway never imports services"),
        ("gateway/node.py", "from snorky.client import Publisher", "gateway never imports snorky.client"),
        ("gateway/node.py", "import redis.asyncio", "redis is known only in gateway/redis/"),
        ("gateway/node.py", "from aiohttp import web", "aiohttp is known only in gateway/http/"),
        ("gateway/http/__init__.py", "import redis", "redis is known only in gateway/redis/"),
        ("gateway/redis/__init__.py", "import aiohttp", "aiohttp is known only in gateway/http/"),
        ("services/__init__.py", "from snorky.gateway.hub import Hub", "services import only what gateway exports"),
        ("services/__init__.py", "from snorky.gateway import hub", "services import only what gateway exports"),
        ("services/__init__.py", "import snorky.gateway", "services import only what gateway exports"),
        ("services/__init__.py", "import snorky.client", "services import only what gateway exports"),
        ("services/__init__.py", "from redis import Redis", "redis is known only in gateway/redis/"),
        ("services/__init__.py", "import aiohttp", "aiohttp is known only in gateway/http/"),
        ("gateway/novelty.py", "import os", "gateway/novelty.py: has no floor"),
    ],
)
def test_forbidden_import_turns_it_red(file, line, expected):
    changed = {**tree(), file: f"{tree().get(file, '')}\n{line}\n"}
    (added,) = set(violations(changed)) - set(violations(tree()))
    assert expected in added


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("gateway/node.py", "from snorky.gateway.errors import SnorkyError"),
        ("gateway/node.py", "from snorky.gateway.redis.connect import Target"),
        ("gateway/redis/broker.py", "from snorky.gateway.redis.subscriber import Subscriber\nimport redis, hiredis"),
        ("gateway/http/app.py", "from .takeover import take_over\nfrom aiohttp import web"),
        ("gateway/codec.py", "from snorky.gateway.canonical import canonical"),
        (
            "services/pubsub.py",
            "from snorky.gateway import Service\nfrom snorky.services.rpc import RPCService\nimport asyncio",
        ),
    ],
)
def test_allowed_import_stays_green(file, line):
    empty = dict.fromkeys(("gateway/errors.py", "gateway/canonical.py", "gateway/redis/__init__.py"), "")
    assert violations({"gateway/__init__.py": '__all__ = ["Service"]', **empty, file: line}) == []
