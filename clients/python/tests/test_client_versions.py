"""The package with different versions of its libraries, each set in its own virtual environment.

pip installs the package with its extras, as users do, and the package's tests run there. They do not need the gateway;
tests that compare with it run in the gateway's own environment.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_PACKAGE = _HERE.parent
_OLDEST = ["redis==5.0.0", "Django==4.2", "websockets==15.0", "PyJWT==2.8.0"]
_BETWEEN = ["redis==7.0.0", "Django==5.1", "websockets", "PyJWT==2.10.0"]
_NEWEST = [
    "redis",
    "Django>=6",
    "websockets",
    "PyJWT",
]  # Django 6 does not support Python 3.11, which the gateway may use here
_TOOLS = ["pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "cryptography"]
_DEADLINE_S = 300


def _run(*command: str, cwd: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
    done = subprocess.run(
        command, cwd=cwd, env=env, timeout=_DEADLINE_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout


def _python(minor: int) -> str:
    """Find a Python 3 of at least this version, ours or another one of this machine. Skips the test if none exists."""
    if sys.version_info >= (3, minor):
        return sys.executable
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python3.{each}") for each in range(minor, minor + 10)]
    found += [str(path) for path in kept.glob("3.*/bin/python")]
    check = f"import sys, ensurepip, ssl; sys.exit(sys.version_info < (3, {minor}))"
    for path in filter(None, found):  # a pyenv shim may exist for a version that is not installed
        if subprocess.run([path, "-c", check], capture_output=True).returncode == 0:
            return path
    pytest.skip(f"needs Python 3.{minor}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package's wheel as pip does before it installs the package."""
    place = tmp_path_factory.mktemp("package")
    package = shutil.copytree(
        _PACKAGE, place / "package", ignore=shutil.ignore_patterns("tests", "build", "*.egg-info")
    )
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check")
    _run(*pip, "--wheel-dir", str(place), str(package), cwd=place)
    (built,) = place.glob("*.whl")
    return built


@pytest.mark.timeout(2 * _DEADLINE_S)
@pytest.mark.parametrize(
    ("versions", "minor"), [(_OLDEST, 11), (_BETWEEN, 11), (_NEWEST, 12)], ids=["oldest", "between", "newest"]
)
def test_package_works_with(versions: list[str], minor: int, wheel: Path, tmp_path: Path) -> None:
    python = str(tmp_path / "venv/bin/python")
    _run(_python(minor), "-m", "venv", "--without-pip", str(tmp_path / "venv"), cwd=tmp_path)
    wanted = [f"{wheel}[redis,django,realtime,tokens]", *versions, *_TOOLS]
    pip = (sys.executable, "-m", "pip", "--python", python)  # another pip would be more to install than the package
    _run(*pip, "install", "--quiet", "--no-compile", "--disable-pip-version-check", *wanted, cwd=tmp_path)
    files = [
        str(path)
        for pattern in ("test_client_*.py", "test_django_*.py", "test_realtime_*.py")
        for path in sorted(_HERE.glob(pattern))
        if path.name != Path(__file__).name and "from snorky.gateway" not in path.read_text()
    ]
    options = ["-q", "-c", os.devnull, "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    options += ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    options += ["-o", f"pythonpath={_HERE}"]
    _run(python, "-m", "pytest", *options, *files, cwd=tmp_path)
