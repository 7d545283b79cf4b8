"""Both distributions as a shop has them: built, installed, and used in a project with folders of these names."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes.nodes import NodeProcess, clean_environment
from tests.support.processes.tools import ROOT

PROJECT = {
    "gateway/__init__.py": "",
    "gateway/payments.py": "VAT = 19\n",
    "services/__init__.py": "",
    "services/orders.py": """
from gateway.payments import VAT
from snorky.services.rpc import Request, RPCService, rpc_command


class Orders(RPCService):
    @rpc_command
    def total(self, request: Request, net: int) -> int:
        return net + net * VAT // 100
""",
    "snorky.toml": """
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"

[services.orders]
class = "services.orders:Orders"

[backend.pubsub_backend]
class = "snorky.services.pubsub:PubSubBackend"
service = "pubsub"
""",
    "program.py": """
import asyncio, sys
import gateway, services, snorky.client, snorky.gateway, snorky.services
from snorky.client import SnorkyBackend, SnorkyHTTPTransport
from snorky.client.aio import Client

async def main(websocket_url, backend_url):
    backend = SnorkyBackend(SnorkyHTTPTransport(backend_url))
    async with Client(websocket_url) as client, client.subscribe("news") as news:
        await client.publish("news", "from a client")
        print((await anext(news)).data)
        await asyncio.to_thread(backend.call, "pubsub_backend", "publish", channel="news", message="from a backend")
        print((await anext(news)).data)
        print(await client.call("orders", "total", net=100))

asyncio.run(main(*sys.argv[1:]))
print(*snorky.__path__)
for module in (gateway, services, snorky.client, snorky.gateway, snorky.services):
    print(module.__file__)
""",
}
OWN_TEST = """
import asyncio
from services.orders import Orders
from snorky.gateway.testing import memory_cluster

async def main():
    async with memory_cluster(3, lambda: [Orders("orders")]) as cluster:
        client = await cluster.connect(node=2)
        print(await client.call("orders", "total", net=100))

asyncio.run(main())
"""
OLD = '[services.pubsub]\nclass = "services.pubsub:PubSubService"\n'
EXTENSION = "snorky/gateway/connection/native/_sends.abi3.so"
_DEADLINE_S = 60


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean_environment(env),
        timeout=_DEADLINE_S,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@dataclass
class Built:
    """The wheels of one distribution, built from the tree and from the sdist, have the same files."""

    wheel: Path
    files: set[str]


def build(source: Path, place: Path, tools: Path) -> Built:
    """Build a wheel of a tree, an sdist of it, and a wheel of that. tools: has setuptools."""
    for each in ("sdist", "wheel", "again"):
        (place / each).mkdir(parents=True)
    env = {"PYTHONPATH": str(tools)}
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir")
    backend = f"from setuptools import build_meta; build_meta.build_sdist({str(place / 'sdist')!r})"
    run(sys.executable, "-c", backend, cwd=source, env=env)
    run(*pip, place / "wheel", source, cwd=place, env=env)
    (sdist,) = (place / "sdist").glob("*.tar.gz")
    run(*pip, place / "again", sdist, cwd=place, env=env)
    (wheel,), (again,) = (tuple((place / each).glob("*.whl")) for each in ("wheel", "again"))
    assert names(wheel) == names(again)
    with tarfile.open(sdist) as packed:
        assert not [name for name in packed.getnames() if name.endswith((".pyc", "/snorky/__init__.py"))]
    return Built(wheel, {name for name in names(wheel) if ".dist-info/" not in name})


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def tracked(folder: str) -> set[str]:
    """Name the files of a folder that git knows or would take."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", folder, cwd=ROOT).splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


def packaged() -> set[str]:
    """Name the files of the gateway's wheel, without the extension module."""
    files = [name for folder in ("gateway", "services") for name in tracked(folder) if not name.endswith(".c")]
    modules = [name.replace("clients/js/src", "snorky/gateway/http/browser") for name in tracked("clients/js/src")]
    return {*(f"snorky/{name}" for name in files), *modules}


def copy_tree(tree: Path) -> None:
    for name in tracked("."):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with setuptools."""
    place = tmp_path_factory.mktemp("tools")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
    run(*pip, "--target", place, "setuptools>=77", cwd=place)
    return place


@pytest.fixture(scope="module")
def built(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    place = tmp_path_factory.mktemp("wheels")
    tree = place / "tree"
    copy_tree(tree)
    gateway = build(tree, place / "gateway", tools)
    return gateway, build(tree / "clients" / "python", place / "client", tools)


@pytest.fixture(scope="module")
def environment(built: tuple[Built, Built], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with both wheels in it. Their dependencies are those of the tests' environment."""
    place = tmp_path_factory.mktemp("shop")
    environment = place / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=place)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, *(each.wheel for each in built), cwd=place)
    (packages,) = environment.glob("lib/*/site-packages")
    # .pth files in there, which put our own folders on the path, are not read: it is no site directory
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return environment


@pytest.fixture
def shop(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A project of its own for each test, and the environment."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    project = tmp_path / "project"
    for name, text in PROJECT.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    return project, environment


def test_wheels_hold_all_of_our_packages_under_one_root_that_is_nobodys(built: tuple[Built, Built]) -> None:
    gateway, client = built
    assert gateway.files - {EXTENSION} == packaged()
    assert client.files == {name.removeprefix("clients/python/") for name in tracked("clients/python/snorky")}
    assert all(name.startswith("snorky/client/") for name in client.files)


@pytest.mark.needs("gcc")
def test_wheel_with_the_extension_module_is_for_all_versions_of_python(built: tuple[Built, Built]) -> None:
    gateway, _ = built
    assert EXTENSION in gateway.files
    assert "-cp311-abi3-linux_" in gateway.wheel.name


def test_without_a_compiler_the_wheel_has_only_python(tools: Path, tmp_path: Path) -> None:
    copy_tree(tmp_path / "tree")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir")
    run(*pip, tmp_path, tmp_path / "tree", cwd=tmp_path, env={"PYTHONPATH": str(tools), "CC": "/nonexistent/cc"})
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert {name for name in names(wheel) if ".dist-info/" not in name} == packaged()


async def test_project_with_such_folders_of_its_own_serves_publishes_and_subscribes(shop: tuple[Path, Path]) -> None:
    project, environment = shop
    env = {"PYTHONPATH": "."}
    command = environment / "bin" / "snorky"
    argv = (str(command), "serve", "--config", "snorky.toml", "--workers", "2")
    async with NodeProcess.running(env, argv=argv, cwd=project) as node:
        backend_url = f"http://127.0.0.1:{node.private_port}/backend"
        python = environment / "bin" / "python"
        said = run(python, "program.py", node.websocket_url, backend_url, cwd=project, env=env).splitlines()
        at = {**env, "SNORKY_PRIVATE__PORT": str(node.private_port)}
        published = run(command, "publish", "--config", "snorky.toml", "news", '"by command"', cwd=project, env=at)
    (packages,) = environment.glob("lib/*/site-packages")
    assert said == [
        "from a client",
        "from a backend",
        "119",
        str(packages / "snorky"),
        *(str(project / name / "__init__.py") for name in ("gateway", "services")),
        *(str(packages / "snorky" / name / "__init__.py") for name in ("client", "gateway", "services")),
    ]
    assert published.startswith("1 published")


def test_project_tests_its_service_in_memory_with_the_installed_package(shop: tuple[Path, Path]) -> None:
    project, environment = shop
    (project / "own_test.py").write_text(OWN_TEST)
    assert run(environment / "bin" / "python", "own_test.py", cwd=project, env={"PYTHONPATH": "."}) == "119\n"


def test_old_name_in_the_settings_of_such_a_project_is_told_with_the_new_one(shop: tuple[Path, Path]) -> None:
    project, environment = shop
    (project / "old.toml").write_text(OLD)
    done = subprocess.run(
        [environment / "bin" / "snorky", "serve", "--config", "old.toml"],
        cwd=project,
        env=clean_environment({"PYTHONPATH": "."}),
        timeout=_DEADLINE_S,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1
    assert "services.pubsub is now snorky.services.pubsub: write class" in " ".join(done.stderr.split()), done.stderr
    assert done.stderr.count("snorky.services.pubsub:PubSubService") == 1
