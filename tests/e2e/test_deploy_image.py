"""The container image, checked without an engine: the contents of its file, and of the wheel in it."""

import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support.deploy.files import (
    container_argv,
    final_stage,
    health_check,
    image_environment,
    image_value,
    instructions,
    run,
)
from tests.support.processes.nodes import clean_environment
from tests.support.processes.tools import ROOT, venv_program


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    result = run(venv_program("hadolint"), "--no-color", str(ROOT / "Dockerfile"))
    assert result.returncode == 0, result.stdout


def test_the_image_runs_as_a_numeric_user_that_is_not_root() -> None:
    user, _, group = image_value("USER").partition(":")
    assert int(user) >= 1000
    assert int(group) >= 1000


def test_entry_point_command_and_health_check_need_no_shell() -> None:
    assert json.loads(image_value("ENTRYPOINT")) == ["snorky"]
    assert json.loads(image_value("CMD")) == ["serve"]
    assert health_check()[:2] == ["python", "-c"]


def test_the_images_stop_signal_is_sigterm() -> None:
    assert image_value("STOPSIGNAL") == "SIGTERM"


def test_the_final_stage_builds_nothing_and_copies_only_the_build() -> None:
    stage = final_stage()
    assert not [rest for name, rest in stage if name in ("RUN", "ADD")]
    assert all(rest.startswith("--from=build ") for name, rest in stage if name == "COPY")


def test_pip_leaves_no_cache_in_the_image() -> None:
    commands = " ".join(rest for name, rest in instructions() if name == "RUN")
    installs = re.findall(r"pip (?:wheel|install)[^&]*", commands)
    assert installs
    assert all("--no-cache-dir" in each for each in installs)


def ignored_by_docker(path: str) -> bool:
    """Whether .dockerignore keeps a file out of the build: the last rule that matches wins."""
    is_ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        names = parts if "**/" in rule else heads
        if any(each.count("/") == pattern.count("/") and fnmatch(each, pattern) for each in names):
            is_ignored = not rule.startswith("!")
    return is_ignored


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        "deploy/secrets/api_key",
        "tests/conftest.py",
        ".venv/bin/python",
        ".env",
        "clients/js/node_modules/x/index.js",
        "gateway/__pycache__/a.pyc",
    ],
)
def test_the_build_sees_no_secret_and_nothing_it_does_not_need(path: str) -> None:
    assert ignored_by_docker(path)


def test_the_wheel_of_the_build_context_contains_both_packages_completely(tmp_path: Path) -> None:
    context = tmp_path / "context"
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.split("\n")
    for name in filter(None, tracked):
        if not ignored_by_docker(name) and (ROOT / name).is_file():
            target = context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    built = run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(context)
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    expected = {
        f"snorky/{path.relative_to(ROOT)}"
        for package in ("gateway", "services")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".c", ".so")
    }  # without the extension module: the image has no compiler
    modules = ROOT / "clients" / "js" / "src"
    expected |= {f"snorky/gateway/http/browser/{path.relative_to(modules)}" for path in modules.rglob("*.js")}
    there = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert expected - there == set()
    code = "from snorky import gateway, services; print(gateway.__file__, services.__file__)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=clean_environment({"PYTHONPATH": str(installed)}),
        text=True,
        capture_output=True,
        check=True,
    )
    assert found.stdout.count(str(installed)) == 2


def test_the_image_without_settings_refuses_to_serve_beyond_loopback() -> None:
    env = {name: value for name, value in image_environment().items() if name.startswith("SNORKY_")}
    result = run(*container_argv(json.loads(image_value("CMD"))), cwd=ROOT, env=env)
    assert result.returncode != 0
    assert "--insecure" in result.stderr + result.stdout
    assert "api_key" in result.stderr + result.stdout
