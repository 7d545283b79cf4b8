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
    "gateway/sdk/old_names.py": 0,
    "gateway/config/secrets.py": 0,
    "gateway/config/origins.py": 0,
    "gateway/config/auth.py": 1,
    "gateway/protocol/channel_names.py": 1,
    "gateway/protocol/codec.py": 1,
    "gateway/protocol/ws_frames.py": 1,
    "gateway/protocol/identities.py": 1,
    "gateway/connection/rate_limiter.py": 1,
    "gateway/logs/queue.py": 1,
    "gateway/logs/__init__.py": 1,
    "gateway/metrics.py": 1,
    "gateway/protocol/publication.py": 1,
    "gateway/config/channel_rules.py": 1,
    "gateway/config/parsers.py": 1,
    "gateway/config/settings.py": 1,
    "gateway/socket_directory.py": 1,
    "gateway/config/sources.py": 1,
    "gateway/run/standard_streams.py": 1,
    "gateway/shared_reads.py": 1,
    "gateway/http/workers/metrics.py": 1,
    "gateway/connection/waiting_replies.py": 1,
    "gateway/auth/tokens.py": 2,
    "gateway/protocol/splicing.py": 2,
    "gateway/connection/connection.py": 2,
    "gateway/connection/refusals.py": 2,
    "gateway/contracts/revocations.py": 2,
    "gateway/connection/shared_limits.py": 2,
    "gateway/connection/storage_quotas.py": 2,
    "gateway/auth/authenticator.py": 3,
    "gateway/contracts/broker.py": 3,
    "gateway/contracts/directory.py": 3,
    "gateway/presence/ownership.py": 3,
    "gateway/presence/roster_view.py": 3,
    "gateway/presence/roster_sync.py": 3,
    "gateway/sdk/handles.py": 3,
    "gateway/delivery/fan_out.py": 3,
    "gateway/contracts/history.py": 3,
    "gateway/delivery/gap_filler.py": 3,
    "gateway/delivery/hub.py": 3,
    "gateway/delivery/write_queue.py": 3,
    "gateway/delivery/batches.py": 3,
    "gateway/delivery/gap_repair.py": 3,
    "gateway/delivery/unkept.py": 3,
    "gateway/delivery/channel_order.py": 3,
    "gateway/auth/jwks.py": 3,
    "gateway/auth/sessions.py": 3,
    "gateway/sdk/service.py": 3,
    "gateway/sdk/topics.py": 3,
    "gateway/connection/inbox.py": 3,
    "gateway/sdk/info.py": 4,
    "gateway/sdk/notices.py": 4,
    "gateway/sdk/registry.py": 4,
    "gateway/delivery/channels.py": 4,
    "gateway/redis/": 4,
    "gateway/sdk/loading.py": 5,
    "gateway/node.py": 5,
    "gateway/http/": 6,
    "gateway/cli.py": 7,
    "gateway/commands/": 7,
    "gateway/run/process.py": 7,
    "gateway/run/node.py": 7,
    "gateway/run/gateway.py": 7,
    "gateway/run/stop_signals.py": 7,
    "gateway/run/supervisor.py": 7,
    "gateway/__init__.py": 8,  # the public names
}

# Two files of one layer, the second below the first.
NEIGHBOURS = {
    ("gateway/protocol/codec.py", "gateway/protocol/channel_names.py"),
    ("gateway/protocol/ws_frames.py", "gateway/protocol/codec.py"),
    ("gateway/config/auth.py", "gateway/config/parsers.py"),
    ("gateway/connection/storage_quotas.py", "gateway/connection/connection.py"),
    ("gateway/connection/storage_quotas.py", "gateway/connection/refusals.py"),
    ("gateway/connection/storage_quotas.py", "gateway/connection/shared_limits.py"),
    ("gateway/logs/__init__.py", "gateway/logs/queue.py"),
    ("gateway/metrics.py", "gateway/logs/__init__.py"),
    ("gateway/config/settings.py", "gateway/config/auth.py"),
    ("gateway/config/settings.py", "gateway/config/parsers.py"),
    ("gateway/config/settings.py", "gateway/config/sources.py"),
    ("gateway/delivery/fan_out.py", "gateway/delivery/hub.py"),
    ("gateway/delivery/fan_out.py", "gateway/delivery/write_queue.py"),
    ("gateway/delivery/fan_out.py", "gateway/delivery/batches.py"),
    ("gateway/delivery/fan_out.py", "gateway/delivery/channel_order.py"),
    ("gateway/delivery/write_queue.py", "gateway/delivery/hub.py"),
    ("gateway/delivery/batches.py", "gateway/delivery/hub.py"),
    ("gateway/delivery/batches.py", "gateway/delivery/write_queue.py"),
    ("gateway/delivery/gap_filler.py", "gateway/contracts/history.py"),
    ("gateway/delivery/gap_filler.py", "gateway/delivery/channel_order.py"),
    ("gateway/delivery/gap_repair.py", "gateway/delivery/gap_filler.py"),
    ("gateway/delivery/gap_repair.py", "gateway/contracts/history.py"),
    ("gateway/delivery/gap_repair.py", "gateway/delivery/channel_order.py"),
    ("gateway/delivery/gap_repair.py", "gateway/delivery/unkept.py"),
    ("gateway/delivery/unkept.py", "gateway/contracts/history.py"),
    ("gateway/presence/roster_view.py", "gateway/contracts/directory.py"),
    ("gateway/presence/roster_sync.py", "gateway/contracts/directory.py"),
    ("gateway/presence/roster_sync.py", "gateway/presence/roster_view.py"),
    ("gateway/auth/authenticator.py", "gateway/auth/sessions.py"),
    ("gateway/sdk/handles.py", "gateway/auth/authenticator.py"),
    ("gateway/presence/ownership.py", "gateway/contracts/directory.py"),
    ("gateway/sdk/handles.py", "gateway/contracts/directory.py"),
    ("gateway/sdk/handles.py", "gateway/delivery/fan_out.py"),
    ("gateway/sdk/handles.py", "gateway/contracts/history.py"),
    ("gateway/sdk/handles.py", "gateway/presence/ownership.py"),
    ("gateway/sdk/topics.py", "gateway/delivery/fan_out.py"),
    ("gateway/sdk/topics.py", "gateway/contracts/history.py"),
    ("gateway/sdk/topics.py", "gateway/sdk/handles.py"),
    ("gateway/sdk/service.py", "gateway/contracts/directory.py"),
    ("gateway/sdk/service.py", "gateway/sdk/handles.py"),
    ("gateway/sdk/service.py", "gateway/sdk/topics.py"),
    ("gateway/protocol/publication.py", "gateway/protocol/codec.py"),
    ("gateway/cli.py", "gateway/commands/"),
    ("gateway/commands/", "gateway/run/gateway.py"),
    ("gateway/run/gateway.py", "gateway/run/node.py"),
    ("gateway/run/process.py", "gateway/run/gateway.py"),
    ("gateway/run/process.py", "gateway/run/stop_signals.py"),
    ("gateway/run/supervisor.py", "gateway/run/stop_signals.py"),
    ("gateway/run/supervisor.py", "gateway/run/process.py"),
    ("gateway/commands/", "gateway/run/process.py"),
    ("gateway/commands/", "gateway/run/supervisor.py"),
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
        ("gateway/errors.py", "import snorky.gateway.protocol.codec", "must not import gateway/protocol/codec.py"),
        ("gateway/delivery/hub.py", "from snorky.gateway.node import Node", "must not import gateway/node.py"),
        ("gateway/delivery/hub.py", "from snorky.gateway import node", "must not import gateway/node.py"),
        ("gateway/delivery/hub.py", "from . import node", "must not import gateway/node.py"),
        ("gateway/delivery/hub.py", "from .http import takeover", "must not import gateway/http/"),
        ("gateway/delivery/hub.py", "from snorky.gateway.contracts.broker import Broker", "must not import gateway/contracts/broker.py (floor 3)"),
        ("gateway/redis/__init__.py", "from snorky.gateway.http import app", "must not import gateway/http/"),
        (
            "gateway/redis/__init__.py",
            "import snorky.gateway.sdk.registry",
            "must not import gateway/sdk/registry.py (floor 4)",
        ),
        ("gateway/node.py", "def late():\n    import snorky.gateway.run.gateway", "must not import gateway/run/gateway.py"),
        ("gateway/node.py", "from snorky.gateway import Service", "must not import gateway/__init__.py"),
        ("gateway/node.py", "import snorky.services.pubsub", "gateway never imports services"),
        ("gateway/node.py", "from snorky.services import pubsub", "gateway never imports services"),
        ("gateway/node.py", "from snorky import services", "gateway never imports services"),
        ("gateway/node.py", "from snorky.client import Publisher", "gateway never imports snorky.client"),
        ("gateway/node.py", "import redis.asyncio", "redis is known only in gateway/redis/"),
        ("gateway/node.py", "from aiohttp import web", "aiohttp is known only in gateway/http/"),
        ("gateway/http/__init__.py", "import redis", "redis is known only in gateway/redis/"),
        ("gateway/redis/__init__.py", "import aiohttp", "aiohttp is known only in gateway/http/"),
        ("services/__init__.py", "from snorky.gateway.delivery.hub import Hub", "services import only what gateway exports"),
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
        ("gateway/redis/pubsub/broker.py", "from snorky.gateway.redis.pubsub.subscriber import Subscriber\nimport redis, hiredis"),
        ("gateway/http/app.py", "from .takeover import take_over\nfrom aiohttp import web"),
        ("gateway/protocol/codec.py", "from snorky.gateway.protocol.channel_names import canonical"),
        (
            "services/pubsub.py",
            "from snorky.gateway import Service\nfrom snorky.services.rpc import RPCService\nimport asyncio",
        ),
    ],
)
def test_allowed_import_stays_green(file, line):
    empty = dict.fromkeys(("gateway/errors.py", "gateway/protocol/channel_names.py", "gateway/redis/__init__.py"), "")
    assert violations({"gateway/__init__.py": '__all__ = ["Service"]', **empty, file: line}) == []
