"""SocketDirectory: a directory that only this user can enter, with a path short enough for Unix sockets.

Rules:
- The path of a Unix socket is limited to 108 bytes on Linux and 104 on macOS; the TMPDIR of a build or a test may be
  longer. The first place that is short enough and writable is used.
- A lock is held while the directory is in use. When a process makes a directory, it removes those with the same
  prefix that killed processes have left behind.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ["SOCKET_PATH_MAX_BYTES", "NoDirectory", "SocketDirectory"]

SOCKET_PATH_MAX_BYTES: Final = 100
_NAME_MAX: Final = "/xxxxxxxx/socket"  # what mkdtemp appends, and the longest name of a socket
_STALE_S: Final = 60.0


class NoDirectory(Exception):
    """No place is usable. The text lists each place with the reason, and the variable to set."""


class SocketDirectory:
    """Makes a directory; `remove`, or leaving the context, removes it. Raises NoDirectory.

    prefix: of its name, ending with "-". places: tried in order; by default TMPDIR, /tmp and the run-time directory.
    """

    def __init__(self, prefix: str, places: Sequence[str] | None = None) -> None:
        failures = []
        for place in dict.fromkeys(_places() if places is None else places):
            room = SOCKET_PATH_MAX_BYTES - len(prefix) - len(_NAME_MAX)
            if len(os.fsencode(place)) > room:
                failures.append(f"{place[:40]}... has more than {room} bytes")
                continue
            try:
                _sweep(Path(place), prefix)
                self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))  # mode 0700
            except OSError as error:
                failures.append(f"{place}: {error.strerror}")
                continue
            try:
                self._lock = open(self.path / "lock", "w")  # open as long as the directory exists
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            except OSError as error:
                shutil.rmtree(self.path, ignore_errors=True)
                failures.append(f"{place}: {error.strerror}")
                continue
            return
        raise NoDirectory(f"no place for a socket: {'; '.join(failures)}; set TMPDIR to a short, writable path")

    def remove(self) -> None:
        """Remove it with its content. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _places() -> list[str]:
    # not tempfile.gettempdir: it raises if no place is writable, and before that tries the working directory
    written = [os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
    return [*written, "/tmp", os.environ.get("XDG_RUNTIME_DIR") or "/dev/shm"]  # noqa: S108 - mkdtemp


def _sweep(parent: Path, prefix: str) -> None:
    """Remove directories of this user that no process has locked."""
    for directory in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            status = directory.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _STALE_S or directory.is_symlink():
                continue  # another user's, or just being made
            with open(directory / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it is in use
                shutil.rmtree(directory, ignore_errors=True)
