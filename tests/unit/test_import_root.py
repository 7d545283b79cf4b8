"""Everything of ours is imported from one root, `snorky`: no module has a second name, and none that a shop may have.

The checkout's root is on the path of tests, so that `import gateway` would work there by accident.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.servers.variants import gateway_module
from benchmarks.support.child import Child

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("gateway", "services", "clients/python", "tests", "benchmarks", "examples")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/*/README.md"), *ROOT.glob("*/README.md")])
OLD = {"gateway", "services"}
OURS = ("snorky", "snorky.client", "snorky.gateway", "snorky.services")


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Give (line, module) of every absolute import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module is not None:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def objections(source: str, where: str) -> list[str]:
    """Name every import that does not begin at the root, or begins there with something that is none of ours."""
    found = []
    for line, module in imported(source):
        first, second = (*module.split("."), "")[:2]
        if first in OLD or (first == "snorky" and f"snorky.{second}".rstrip(".") not in OURS):
            found.append(f"{where}:{line}: {module}")
    return found


def test_no_file_of_ours_imports_an_old_name() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "node_modules" not in path.parts]
    assert len(files) > 300
    assert [each for path in files for each in objections(path.read_text(), str(path.relative_to(ROOT)))] == []


def test_no_program_of_the_documents_imports_an_old_name() -> None:
    found, programs = [], 0
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            programs += 1
            found += objections(block, str(page.relative_to(ROOT)))
    assert programs > 10 and found == []


@pytest.mark.parametrize(
    "line",
    [
        "import gateway",
        "import gateway.hub as hub",
        "def late():\n    from services.rpc import RPCService",
        "from snorky import Publisher",
        "import snorky.aio",
    ],
)
def test_an_import_of_an_old_name_is_found(line: str) -> None:
    assert len(objections(line, "file.py")) == 1


def test_root_is_a_namespace_of_the_checkout_and_belongs_to_nobody() -> None:
    """A process that has nothing of the checkout on its path but what the installation gives it."""
    program = """
import sys
import snorky, snorky.client.aio, snorky.gateway.delivery.hub, snorky.services.pubsub
assert snorky.__file__ is None
for module in (snorky.client, snorky.gateway.delivery.hub, snorky.services):
    print(module.__file__)
print(*[name for name in sys.modules if name.partition(".")[0] in ("gateway", "services")])
"""
    argv = [sys.executable, "-P", "-c", program]
    done = subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    places = ("clients/python/snorky/client/__init__.py", "gateway/delivery/hub.py", "services/__init__.py")
    assert done.stdout.splitlines() == [*(str(ROOT / place) for place in places), ""]


def test_a_node_does_not_load_the_client_library_of_other_commands() -> None:
    """redis-py takes 7 MB of each worker, and a tenth of its start."""
    program = """
import sys
import snorky.gateway.cli, snorky.services.pubsub
print(*[name for name in sys.modules if name.partition(".")[0] == "redis"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "\n"


def test_benchmark_of_another_clone_runs_the_code_of_that_clone(tmp_path: Path) -> None:
    """`--before`: that clone's packages are not the installed ones."""
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "__init__.py").touch()
    program = "import json, os, snorky.gateway as module; print(json.dumps({os.path.realpath(module.__file__): 1}))"
    for folder in (tmp_path, None):
        with Child([sys.executable, "-c", program], folder=folder) as child:
            (found,) = child.answer(10)
        assert Path(found) == (folder or ROOT) / "gateway" / "__init__.py"


def test_benchmark_finds_the_node_of_a_clone_whose_benchmarks_have_no_folders(tmp_path: Path) -> None:
    assert gateway_module(ROOT) == "benchmarks.servers.gateway_server"
    assert gateway_module(tmp_path) == ""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gateway_server.py").touch()
    assert gateway_module(tmp_path) == "benchmarks.gateway_server"
