"""Builds the C programs on demand, with gcc, into benchmarks/build (ignored by git)."""

import shutil
import subprocess
from pathlib import Path

__all__ = ["compiled"]

_SOURCES = Path(__file__).parents[1]
_BUILD = _SOURCES / "build"


def compiled(name: str) -> Path | None:
    """Return the program made of benchmarks/NAME.c, newer than its source; None: there is no gcc.

    name: with its folder, "servers/sendloop".

    Raises CalledProcessError: the source does not compile.
    """
    gcc = shutil.which("gcc") or shutil.which("cc")
    if gcc is None:
        return None
    source, program = _SOURCES / f"{name}.c", _BUILD / Path(name).name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        _BUILD.mkdir(exist_ok=True)
        subprocess.run([gcc, "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)], check=True)
    return program
