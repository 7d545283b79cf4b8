"""The extension module of this tree, built for the tests from its source, in place of an installed one.

Needs gcc and Python.h:

pytestmark = pytest.mark.needs("gcc", "Python.h")
with extension_built():
    ...
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from sysconfig import get_path
from types import ModuleType

import pytest

from tests.support.processes.tools import ROOT, program

__all__ = ["NAME", "extension", "extension_built", "skip_without_ring"]

NAME = "snorky.gateway.connection.native._sends"
_FOLDER = ROOT / "gateway" / "connection" / "native"


@cache
def extension() -> ModuleType:
    """Build and load it, once a process."""
    with tempfile.TemporaryDirectory() as place:
        library = Path(place) / "_sends.abi3.so"
        words = [program("gcc"), "-shared", "-fPIC", "-O2", "-Wall", "-Werror", f"-I{get_path('include')}"]
        subprocess.run([*words, "-o", str(library), str(_FOLDER / "_sends.c")], check=True)
        loader = ExtensionFileLoader(NAME, str(library))
        module = module_from_spec(ModuleSpec(NAME, loader, origin=str(library)))
        loader.exec_module(module)
    return module


@contextmanager
def extension_built() -> Iterator[None]:
    """Let the gateway find it during the context."""
    before = sys.modules.get(NAME)
    sys.modules[NAME] = extension()
    try:
        yield
    finally:
        if before is None:
            del sys.modules[NAME]
        else:
            sys.modules[NAME] = before


def skip_without_ring() -> None:
    """Skip a test if the kernel or the container does not allow io_uring."""
    try:
        extension().Ring()
    except OSError as error:
        pytest.skip(f"needs io_uring: {error.strerror}")
