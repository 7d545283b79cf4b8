"""The locks of the container image: complete, with hashes, for both processors, and what its build really installs."""

import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.e2e.test_deploy_image import ignored_by_docker
from tests.support.deploy.files import DEPLOY, image_value, instructions
from tests.support.deploy.files import run as run_program
from tests.support.processes.tools import ROOT

LOCKS = {"requirements.txt": "dependencies", "build-requirements.txt": "requires"}
GLIBC_MINORS = range(17, 37)  # Debian 12, on which the image is based, has 2.36


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Read a lock: version and hashes, by package. Fails on anything else that pip would read."""
    found = {}
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+) *", line)
        assert match is not None, line[:100]
        assert match[1] not in found, line[:100]
        found[match[1]] = match[2], match[3].split()
    return found


def wanted(table: str) -> list[Requirement]:
    """Return what pyproject.toml asks for on the image's platform."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    written = project["project"][table] if table == "dependencies" else project["build-system"][table]
    environment = {"sys_platform": "linux", "python_version": image_python()}
    found = [Requirement(each) for each in written]
    return [each for each in found if each.marker is None or each.marker.evaluate(environment)]


def image_python() -> str:
    """Return the image's version of Python, the same in both stages."""
    (version,) = {re.split(r"[:-]", rest)[1] for name, rest in instructions() if name == "FROM"}
    return version


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_a_permitted_version_of_each_dependency(name: str) -> None:
    found = locked(name)
    for requirement in wanted(LOCKS[name]):
        version, hashes = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version}. Run scripts/lock-image"
        assert hashes


def test_every_installation_of_the_build_is_locked() -> None:
    commands = " ".join(rest for name, rest in instructions() if name == "RUN").split("&&")
    installs = [command for command in commands if re.search(r"\bpip (install|wheel|download)\b", command)]
    assert len(installs) == 4
    for command in installs:
        is_locked = "--require-hashes" in command and "--only-binary=:all:" in command
        is_offline = "--no-deps" in command and ("--no-index" in command or "--no-build-isolation" in command)
        assert is_locked or is_offline, command
    for name in LOCKS:
        assert any(f"-r deploy/{name}" in command for command in installs)
        assert not ignored_by_docker(f"deploy/{name}")


@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_pip_accepts_a_wheel_of_each_locked_package(processor: str, tmp_path: Path) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_{processor}" for minor in GLIBC_MINORS]
    platforms += [f"--platform=manylinux2014_{processor}"]
    options = ["--quiet", "--only-binary=:all:", "--no-deps", "--require-hashes", f"--python-version={image_python()}"]
    for name in LOCKS:
        argv = [sys.executable, "-m", "pip", "download", *options, *platforms, "-r", str(DEPLOY / name)]
        run([*argv, "--dest", str(tmp_path / name)], tmp_path)
        assert len(list((tmp_path / name).iterdir())) == len(locked(name))


def test_the_commands_of_the_build_make_an_environment_that_serves(tmp_path: Path) -> None:
    """The RUN instruction as it stands, with the image's folders in a temporary one."""
    context = tmp_path / "src"
    tracked = run_program("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.split("\n")
    for path in filter(None, tracked):
        if not ignored_by_docker(path) and (ROOT / path).is_file():
            (context / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, context / path)
    run([sys.executable, "-m", "venv", str(tmp_path / "python")], tmp_path)
    (command,) = [rest for name, rest in instructions() if name == "RUN"]
    for folder in ("/wheel", "/opt/snorky"):
        command = re.sub(rf"(?<![\w/.]){folder}\b", str(tmp_path) + folder, command)
    path = f"{tmp_path / 'python' / 'bin'}:/usr/bin:/bin"
    run(["sh", "-euc", command], context, {"PATH": path})
    program = tmp_path / "opt" / "snorky" / "bin" / "snorky"
    assert image_value("ENTRYPOINT") == '["snorky"]'
    said = run([str(program), "check", "--help"], tmp_path)
    assert "Examples" in said
    freeze = [sys.executable, "-m", "pip", "--python", str(program.with_name("python")), "freeze", "--all"]
    installed = dict(line.split("==") for line in run(freeze, tmp_path).splitlines() if "==" in line)
    versions = {name: version for name, (version, _) in locked("requirements.txt").items()}
    assert {canonicalize_name(name): version for name, version in installed.items()} == versions


def run(argv: list[str], cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a program that must succeed, and return its standard output."""
    done = run_program(*argv, cwd=cwd, env=env)
    assert done.returncode == 0, f"{shlex.join(argv)[:300]}\n{done.stdout}\n{done.stderr}"
    return done.stdout
