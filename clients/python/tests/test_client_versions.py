"""The package beside the versions of redis-py and Django that shops have: each pair in an environment of its own.

pip installs the package with its extras, as a shop would, and then the tests of the publisher and of Django's part run
there. They need nothing of the gateway; those that compare with it run in the gateway's own environment.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_PACKAGE = _HERE.parent
_VERSIONS = [("5.0.0", "4.2"), ("7.0.0", "5.1")]  # the newest: in the gateway's environment
_TOOLS = ["websockets", "pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "cryptography"]
_DEADLINE_S = 180


def _run(*command: str, cwd: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
    done = subprocess.run(
        command, cwd=cwd, env=env, timeout=_DEADLINE_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(2 * _DEADLINE_S)
@pytest.mark.parametrize(("redis", "django"), _VERSIONS)
def test_publisher_and_django_part_work_with(redis: str, django: str, tmp_path: Path) -> None:
    python = str(tmp_path / "venv/bin/python")
    _run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    package = shutil.copytree(
        _PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("tests", "build", "*.egg-info")
    )
    wanted = [f"{package}[redis,django]", f"redis=={redis}", f"Django=={django}", *_TOOLS]
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted, cwd=tmp_path)
    files = [
        str(path)
        for pattern in ("test_client_*.py", "test_django_*.py")
        for path in sorted(_HERE.glob(pattern))
        if path.name != Path(__file__).name and "from gateway" not in path.read_text()
    ]
    options = ["-q", "-c", os.devnull, "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    options += ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    options += ["-o", f"pythonpath={_HERE}"]
    _run(python, "-m", "pytest", *options, *files, cwd=tmp_path)
