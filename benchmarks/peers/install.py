"""Installs the peers on demand, each into a folder of its own outside of the tree; its name has the version.

Rules:
- A folder is renamed to its name when it is complete, so an interrupted installation is done again.
- No script of an npm package runs. npm and pip use their usual configuration.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

__all__ = ["NotInstalled", "cache_folder", "installed", "pinned"]

VERSIONS = Path(__file__).with_name("versions.toml")
TIMEOUT_S = 300.0  # of one package: Bun has 40 MB


class NotInstalled(Exception):
    """A peer cannot be installed here."""


def cache_folder() -> Path:
    """The folder of all peers: snorky-bench in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snorky-bench"


def pinned(text: str) -> dict[str, tuple[str, str]]:
    """Parse versions.toml: the registry and the version of each package.

    Raises ValueError: a registry is unknown, a version is not exact.
    """
    found: dict[str, tuple[str, str]] = {}
    for registry, packages in tomllib.loads(text).items():
        if registry not in ("npm", "pypi"):
            raise ValueError(f"unknown registry {registry}")
        for package, version in packages.items():
            if not version.replace(".", "").isdigit():
                raise ValueError(f"{package}: {version!r} is not an exact version")
            found[package] = registry, version
    return found


def installed(package: str) -> Path:
    """Install a package of versions.toml unless that is done. Returns its folder.

    The folder has node_modules, or is for PYTHONPATH. Raises NotInstalled: the reason in one line.
    """
    registry, version = pinned(VERSIONS.read_text())[package]
    folder = cache_folder() / f"{registry}-{package.replace('/', '+')}-{version}"
    if registry == "pypi":  # packages in C are for one version of Python
        folder = folder.with_name(f"{folder.name}-{sys.implementation.cache_tag}")
    if folder.is_dir():
        return folder
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="unfinished-") as place:
            made = Path(place, "peer")
            made.mkdir()
            _run(_command(registry, f"{package}@{version}", made), made)
            made.rename(folder)
    except OSError as error:
        raise NotInstalled(str(error)) from error
    return folder


def _command(registry: str, pin: str, folder: Path) -> list[str]:
    if registry == "pypi":
        requirement = pin.replace("@", "==")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        return [*pip, "--target", str(folder), requirement]
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstalled("there is no npm")
    return [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), pin]


def _run(argv: list[str], folder: Path) -> None:
    """Run an installer. Raises NotInstalled: it failed, or took too long."""
    try:
        done = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{Path(argv[0]).name} took more than {TIMEOUT_S:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no reason given"]
        raise NotInstalled(f"{Path(argv[0]).name}: {errors[0].strip()[:160]}")
