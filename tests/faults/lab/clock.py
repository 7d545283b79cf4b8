"""Clock: the wall clock of one process, to be set wrong while it runs. Compiled when first wanted; needs gcc."""

import struct
import subprocess
from pathlib import Path

from tests.support.tools import program

__all__ = ["Clock"]

_SOURCE = Path(__file__).parent / "clock.c"


class Clock:
    """Wrong by nothing at first. directory: for the library and the file that tells how wrong."""

    def __init__(self, directory: Path, name: str) -> None:
        library = directory / "clock.so"
        if not library.exists():
            words = [program("gcc"), "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
            subprocess.run(words, check=True, capture_output=True)
        self._path = directory / f"clock-{name}"
        self._path.write_bytes(struct.pack("q", 0))
        self.env = {"LD_PRELOAD": str(library), "LAB_CLOCK": str(self._path)}

    def jump(self, seconds: int) -> None:
        """Make it wrong by so much, at once."""
        with self._path.open("r+b") as file:  # written in place: the process has it mapped
            file.write(struct.pack("q", seconds))
