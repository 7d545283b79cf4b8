"""Each room of the gateway imports only the rooms that ROOMS lists for it, and no file imports itself in a circle.

A room is a folder of `gateway`, or one of its own files. The files of "leaf" import only each other.
The files of TOP belong to "runtime".
Imports are read from the syntax tree, so those in functions and under TYPE_CHECKING count too.
"""

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TOP = ("cli", "__init__")  # the command and the public names, which nothing below imports
LEAF = ("_version", "errors", "logs", "metrics", "shared_reads", "socket_directory", "tallies")
_PURE = ("leaf", "config", "protocol")
_CORE = (*_PURE, "contracts", "connection")
_SDK = (*_CORE, "auth", "permissions", "presence", "delivery")
_NODE = (*_SDK, "sdk", "node")

# room: what it may import besides itself
ROOMS: dict[str, tuple[str, ...]] = {
    "leaf": (),
    "config": ("leaf",),
    "protocol": ("leaf",),
    "contracts": _PURE,
    "connection": _PURE,
    "auth": _CORE,
    "permissions": (*_PURE, "connection"),
    "hooks": (*_PURE, "contracts"),
    "presence": _CORE,
    "delivery": (*_CORE, "presence"),
    "sdk": _SDK,
    "node": (*_SDK, "sdk"),
    "testing": _NODE,
    "redis": (*_PURE, "contracts"),
    "http": (*_NODE, "hooks"),
    "runtime": (*_NODE, "redis", "http"),
}

TOP_FILES_MAX = 10  # of `gateway` itself
FILES_MAX = 16  # of any other folder
LINES_MAX = 400

# Files of gateway/redis that may ask if a Redis is a Cluster. All others get objects of one interface.
MAY_CHOOSE = (
    "gateway/redis/backend.py",
    "gateway/redis/connection/address.py",  # the target itself
    "gateway/redis/target.py",  # makes it
    "gateway/redis/url.py",  # parses its URL
    "gateway/redis/cluster/shard_map.py",
    "gateway/redis/multi/hashing.py",  # rejects a Cluster among several Redis
    "gateway/redis/write_watch.py",  # asks each server about its memory
    "gateway/redis/admin/",  # operator commands, which no backend makes
)

# Foreign packages that only one folder knows. `redis` is redis-py: nodes use their own pipelines instead, so only the
# commands of operators import it.
HOMES = {"redis": "gateway/redis/admin/", "hiredis": "gateway/redis/", "aiohttp": "gateway/http/"}


def room_of(path: str) -> str:
    """Give the room of a file of `gateway`."""
    name = path.split("/")[1].removesuffix(".py")
    return "runtime" if name in TOP else "leaf" if name in LEAF else name


@cache
def imports_of(source: str, path: str) -> list[tuple[int, str, str]]:
    """Give (line, module, imported name or "") of every import."""
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
    """Find the file that is meant by `from module import name`."""
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
    """Say every import that the table forbids, and every room that it does not have. sources: by path."""
    found = []
    exported = public_names(sources["gateway/__init__.py"])
    for path, source in sources.items():
        if path.startswith("gateway/") and room_of(path) not in ROOMS:
            found.append(f"{path}: no such room; put it into one, or add it to ROOMS")
            continue
        for line, module, name in imports_of(source, path):
            reason = objection(sources, path, module, name, exported)
            if reason:
                found.append(f"{path}:{line}: {reason}")
    return found


def objection(sources: Mapping[str, str], path: str, module: str, name: str, exported: set[str]) -> str:
    """Say why this import is forbidden; "" if it is not."""
    top, _, rest = module.partition(".")
    if top in HOMES:
        return "" if path.startswith(HOMES[top]) else f"{top} is known only in {HOMES[top]}"
    if top in ("gateway", "services"):
        return f"imports begin with snorky, not with {top}"
    if top != "snorky":
        return ""
    package = (rest or name).partition(".")[0]
    if path.startswith("services/"):
        if package != "gateway" or (module == "snorky.gateway" and name in exported):
            return ""
        return f"services import only what gateway exports in __all__, not {module} {name}".rstrip()
    if package == "services":
        return "gateway never imports services; the settings name them"
    if (
        path.startswith("gateway/redis/")
        and not path.startswith(HOMES["redis"])
        and ".redis.admin" in f"{module}.{name}"
    ):
        return "what a node uses must not import redis.admin"
    room, target = room_of(path), room_of(file_of(sources, module, name))
    if target == room or target in ROOMS[room]:
        return ""
    return f"{room} must not import {target}"


def choices_of_topology(sources: Mapping[str, str]) -> list[str]:
    """Find code in `gateway/redis` that asks if its Redis is a Cluster, outside of MAY_CHOOSE."""
    found = []
    for path, source in sources.items():
        if not path.startswith("gateway/redis/") or path.startswith(MAY_CHOOSE):
            continue
        for node in ast.walk(ast.parse(source)):
            asks = isinstance(node, ast.Attribute) and node.attr in ("cluster", "is_cluster")
            asks = asks or (isinstance(node, ast.alias) and node.name == "shard_map_of")
            is_union = isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)
            if asks or (is_union and "Cluster" in ast.unparse(node)):
                found.append(f"{path}:{node.lineno}: take an object that backend.py has made: {ast.unparse(node)}")
    return found


def decisions_by_text(sources: Mapping[str, str]) -> list[str]:
    """Find code that compares or searches `what` of an error, which is for logs only."""
    found = []
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            parts = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            parts += [node.value] if isinstance(node, ast.Attribute) else []
            if any(isinstance(part, ast.Attribute) and part.attr == "what" for part in parts):
                found.append(f"{path}:{node.lineno}: decide by the error's class or by its refusal")
    return found


def circles(sources: Mapping[str, str]) -> list[list[str]]:
    """Find files that import each other, directly or by others; each list is one circle."""
    below = {
        path: {file_of(sources, module, name) for _, module, name in imports_of(source, path)} & set(sources) - {path}
        for path, source in sources.items()
    }
    while True:  # take away what imports nothing that is left, and what nothing imports that is left
        imported = set().union(*below.values()) if below else set()
        free = [path for path, lower in below.items() if not lower & set(below) or path not in imported]
        if not free:
            break
        for path in free:
            del below[path]
    return [[path, *sorted(lower & set(below))] for path, lower in below.items()]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "services").rglob("*.py")), ids=lambda each: str(each.relative_to(ROOT))
)
def test_service_is_a_few_lines_on_the_primitives(path):
    assert len(path.read_text().splitlines()) <= 200


def too_large(sources: Mapping[str, str]) -> list[str]:
    """List folders and files that are larger than a reader can survey."""
    found = [f"{path}: {size} lines" for path, text in sources.items() if (size := len(text.splitlines())) > LINES_MAX]
    for folder, count in Counter(path.rpartition("/")[0] for path in sources).items():
        most = TOP_FILES_MAX if folder == "gateway" else FILES_MAX
        found += [f"{folder}: {count} files"] if count > most else []
    return found


def test_files_and_folders_can_be_surveyed():
    assert too_large(tree()) == []
    assert len(ROOMS) <= 16


def test_a_file_or_folder_that_is_too_large_turns_it_red():
    long = {"gateway/auth/tokens.py": "x = 1\n" * (LINES_MAX + 1)}
    many = {f"gateway/auth/file{number}.py": "" for number in range(FILES_MAX + 1)}
    top = {f"gateway/file{number}.py": "" for number in range(TOP_FILES_MAX + 1)}
    assert too_large(long) == [f"gateway/auth/tokens.py: {LINES_MAX + 1} lines"]
    assert too_large(many) == [f"gateway/auth: {FILES_MAX + 1} files"]
    assert too_large(top) == [f"gateway: {TOP_FILES_MAX + 1} files"]


def test_each_folder_of_the_gateway_is_in_its_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(project["tool"]["setuptools"]["packages"]) - {"snorky.gateway.http.browser"}
    folders = {path.rpartition("/")[0] for path in tree() if path.endswith("/__init__.py")}
    assert packages == {f"snorky.{folder.replace('/', '.')}" for folder in folders}


def test_rooms_import_only_what_the_table_lists():
    assert violations(tree()) == []


def test_no_file_imports_itself_in_a_circle():
    assert circles(tree()) == []


def test_no_file_of_the_python_client_imports_itself_in_a_circle():
    root = ROOT / "clients" / "python" / "snorky"
    sources = {file.relative_to(root).as_posix(): file.read_text() for file in root.rglob("*.py")}
    assert len(sources) > 30 and circles(sources) == []


def test_no_code_decides_by_the_text_of_an_error():
    assert decisions_by_text(tree()) == []


@pytest.mark.parametrize("source", ["if error.what != MOVED:\n    raise", "error.what.startswith('MOVED')"])
def test_a_decision_by_text_turns_it_red(source):
    assert decisions_by_text({"gateway/redis/cluster/broker.py": source})


def test_only_the_backend_chooses_between_a_server_and_a_cluster():
    assert choices_of_topology(tree()) == []


@pytest.mark.parametrize(
    "source",
    [
        "make = A if target.cluster is None else B",
        "if target.is_cluster:\n    pass",
        "from snorky.gateway.redis.cluster.shard_map import shard_map_of",
        "AnyCommands = CommandPipeline | ClusterCommands",
    ],
)
def test_another_choice_turns_it_red(source):
    path = "gateway/redis/history/store.py"
    assert choices_of_topology({path: source})
    assert not choices_of_topology({"gateway/redis/backend.py": source})


def test_no_public_name_hides_a_module():
    """`import snorky.gateway.x.y as module` reads `x` as an attribute of the package: it must be the module."""
    for path, source in tree().items():
        if path.endswith("/__init__.py"):
            folder = ROOT / Path(path).parent
            modules = {
                each.stem for each in folder.iterdir() if each.suffix == ".py" or (each / "__init__.py").exists()
            }
            assert not public_names(source) & modules, path


def test_a_circle_is_found():
    sources = {"gateway/a.py": "import snorky.gateway.b", "gateway/b.py": "from snorky.gateway import a"}
    assert circles(sources) == [["gateway/a.py", "gateway/b.py"], ["gateway/b.py", "gateway/a.py"]]


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("gateway/errors.py", "import snorky.gateway.protocol.codec", "leaf must not import protocol"),
        ("gateway/config/origins.py", "from snorky.gateway.protocol import codec", "config must not import protocol"),
        ("gateway/protocol/codec.py", "import snorky.gateway.config.settings", "protocol must not import config"),
        ("gateway/contracts/broker.py", "from ..connection import inbox", "contracts must not import connection"),
        ("gateway/connection/inbox.py", "from snorky.gateway.auth import tokens", "connection must not import auth"),
        ("gateway/auth/tokens.py", "import snorky.gateway.sdk.service", "auth must not import sdk"),
        ("gateway/presence/ownership.py", "import snorky.gateway.delivery.hub", "presence must not import delivery"),
        ("gateway/delivery/hub.py", "from snorky.gateway.node import Node", "delivery must not import node"),
        ("gateway/delivery/hub.py", "from snorky.gateway import node", "delivery must not import node"),
        ("gateway/delivery/hub.py", "from .. import node", "delivery must not import node"),
        ("gateway/sdk/service.py", "import snorky.gateway.http.app", "sdk must not import http"),
        ("gateway/node.py", "def late():\n    import snorky.gateway.runtime.gateway", "node must not import runtime"),
        ("gateway/node.py", "from snorky.gateway import Service", "node must not import runtime"),
        ("gateway/redis/__init__.py", "from snorky.gateway.http import app", "redis must not import http"),
        ("gateway/redis/__init__.py", "import snorky.gateway.sdk.registry", "redis must not import sdk"),
        ("gateway/http/__init__.py", "import snorky.gateway.redis.keys", "http must not import redis"),
        ("gateway/cli.py", "import snorky.gateway.testing.cluster", "runtime must not import testing"),
        ("gateway/http/app.py", "from snorky.gateway import cli", "http must not import runtime"),
        ("gateway/testing/cluster.py", "import snorky.gateway.redis.keys", "testing must not import redis"),
        ("gateway/testing/cluster.py", "import snorky.gateway.http.app", "testing must not import http"),
        ("gateway/testing/cluster.py", "from snorky.gateway import Node", "testing must not import runtime"),
        ("gateway/testing/cluster.py", "import snorky.services.rpc", "gateway never imports services"),
        ("gateway/node.py", "import snorky.gateway.testing.cluster", "node must not import testing"),
        ("gateway/runtime/node.py", "import snorky.gateway.testing.cluster", "runtime must not import testing"),
        ("gateway/__init__.py", "from snorky.gateway import testing", "runtime must not import testing"),
        ("gateway/node.py", "import snorky.services.pubsub", "gateway never imports services"),
        ("gateway/node.py", "from snorky.services import pubsub", "gateway never imports services"),
        ("gateway/node.py", "from snorky import services", "gateway never imports services"),
        ("gateway/node.py", "import gateway.errors", "imports begin with snorky, not with gateway"),
        ("services/chat.py", "from services import rpc", "imports begin with snorky, not with services"),
        ("gateway/node.py", "import redis.asyncio", "redis is known only in gateway/redis/admin/"),
        ("gateway/node.py", "from aiohttp import web", "aiohttp is known only in gateway/http/"),
        ("gateway/http/__init__.py", "import redis", "redis is known only in gateway/redis/admin/"),
        ("gateway/http/__init__.py", "import hiredis", "hiredis is known only in gateway/redis/"),
        ("gateway/redis/keys.py", "from redis.asyncio import Redis", "redis is known only in gateway/redis/admin/"),
        ("gateway/redis/keys.py", "def late():\n    import redis", "redis is known only in gateway/redis/admin/"),
        ("gateway/redis/keys.py", "from snorky.gateway.redis.admin import rights", "must not import redis.admin"),
        ("gateway/redis/keys.py", "from snorky.gateway.redis.admin.redis_py import x", "must not import redis.admin"),
        ("gateway/redis/__init__.py", "import aiohttp", "aiohttp is known only in gateway/http/"),
        ("services/__init__.py", "from snorky.gateway.delivery.hub import Hub", "services import only what gateway"),
        ("services/__init__.py", "from snorky.gateway import delivery", "services import only what gateway exports"),
        ("services/__init__.py", "import snorky.gateway", "services import only what gateway exports"),
        ("services/__init__.py", "from redis import Redis", "redis is known only in gateway/redis/admin/"),
        ("gateway/novelty.py", "import os", "gateway/novelty.py: no such room"),
        ("gateway/novelty/file.py", "import os", "gateway/novelty/file.py: no such room"),
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
        ("gateway/runtime/node.py", "from snorky.gateway.redis.connect import Target"),
        ("gateway/redis/pubsub/broker.py", "from snorky.gateway.redis.url import S\nimport hiredis"),
        ("gateway/redis/admin/rights.py", "from snorky.gateway.redis.admin import redis_py\nimport redis, hiredis"),
        ("gateway/runtime/commands/stats.py", "from snorky.gateway.redis.admin.nodes import read_nodes"),
        ("gateway/http/app.py", "from .websocket import handler\nfrom aiohttp import web"),
        ("gateway/protocol/codec.py", "from snorky.gateway.protocol.channel_names import canonical"),
        ("services/pubsub.py", "from snorky.gateway import Service\nfrom snorky.services.rpc import R\nimport asyncio"),
    ],
)
def test_allowed_import_stays_green(file, line):
    empty = dict.fromkeys(("gateway/errors.py", "gateway/redis/__init__.py"), "")
    assert violations({"gateway/__init__.py": '__all__ = ["Service"]', **empty, file: line}) == []
