"""Opens standard streams that are missing when the process starts (`>&-`, some cron jobs and supervisors).

Otherwise the kernel assigns the numbers 0, 1 and 2 to the next files and sockets that the process opens. Code that
writes to "stderr" then writes to a client's connection, and libuv aborts the process when it closes such a descriptor.
"""

import os
import sys
from typing import Final

__all__ = ["open_missing_streams"]

_FLAGS: Final = (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)  # stdin, stdout, stderr


def open_missing_streams() -> None:
    """Connect each closed standard stream to /dev/null. Call before anything else is opened. Idempotent."""
    for number, flags in enumerate(_FLAGS):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)  # the lowest free number: this one, because those below are open
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # stays open as long as the process runs
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)
