"""clients/js as npm packs it: usable in a strict TypeScript project, a Vite bundle and React's strict mode."""

import asyncio
import shutil
import tarfile
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.clients.js_crowd import JS
from tests.support.processes.tools import ROOT, program

FOLDER = ROOT / "tests" / "js_package"
TOOLS = FOLDER / "node_modules"
TSC = JS / "node_modules" / "typescript" / "bin" / "tsc"
WITHIN_S = 60.0

pytestmark = [
    pytest.mark.needs("node", "npm"),
    pytest.mark.skipif(not TSC.exists(), reason="needs TypeScript: npm --prefix clients/js ci"),
    pytest.mark.skipif(not (TOOLS / "vite").exists(), reason="needs Vite and React: npm --prefix tests/js_package ci"),
]


async def run(*argv: str, cwd: Path) -> str:
    """Run a program to its end. Raises AssertionError: it failed."""
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack the client as npm does before it publishes it."""
    place = tmp_path_factory.mktemp("pack")
    source = place / "source"
    shutil.copytree(JS, source, ignore=shutil.ignore_patterns("node_modules", "types"))
    (source / "node_modules").symlink_to(JS / "node_modules")
    await run(program("npm"), "pack", "--offline", "--pack-destination", str(place), cwd=source)
    (found,) = place.glob("snorky-*.tgz")
    return found


@pytest.fixture
def project(packed: Path, tmp_path: Path) -> Path:
    """Make a project with the packed client and the tools installed."""
    project = tmp_path / "project"
    shutil.copytree(FOLDER, project, ignore=shutil.ignore_patterns("node_modules"))
    installed = project / "node_modules"
    installed.mkdir()
    for tool in TOOLS.iterdir():
        (installed / tool.name).symlink_to(tool)
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "packed", filter="data")
    (tmp_path / "packed" / "package").rename(installed / "snorky")
    return project


@pytest.mark.parametrize("modules", [("nodenext", "nodenext"), ("esnext", "bundler")])
async def test_strict_typescript_knows_the_types_of_the_packed_client(project: Path, modules: tuple[str, str]) -> None:
    module, resolution = modules
    await run(
        program("node"), str(TSC), "--project", ".", "--module", module, "--moduleResolution", resolution, cwd=project
    )


async def test_bundle_works_and_a_strict_mode_page_is_left_with_one_connection(project: Path) -> None:
    await run(program("node"), "node_modules/vite/bin/vite.js", "build", "--logLevel", "warn", cwd=project)
    bundles = [path.read_text() for path in (project / "dist").glob("*.js")]
    assert not any("MessagePack" in bundle for bundle in bundles), "unused code is omitted"
    assert (await run(program("node"), "run.js", cwd=project)).strip() == "ok"
