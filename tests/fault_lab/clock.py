"""Clock: shifts the wall clock of one process while it runs. Compiled on first use; needs gcc."""

import struct
import subprocess
from pathlib import Path

from tests.support.processes.tools import program

__all__ = ["Clock"]

_SOURCE = Path(__file__).parent / "clock.c"


class Clock:
    """Starts with no shift. directory: for the library and the file with the shift."""

    def __init__(self, directory: Path, name: str) -> None:
        library = directory / "clock.so"
        if not library.exists():
            words = [program("gcc"), "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
            subprocess.run(words, check=True, capture_output=True)
        self._path = directory / f"clock-{name}"
        self._path.write_bytes(struct.pack("q", 0))
        self.env = {"LD_PRELOAD": str(library), "LAB_CLOCK": str(self._path)}

    def jump(self, seconds: int) -> None:
        """Shift the clock by this much, at once."""
        with self._path.open("r+b") as file:  # written in place, because the process has the file mapped
            file.write(struct.pack("q", seconds))
