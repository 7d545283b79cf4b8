"""One process of a benchmark: started on a CPU of its own, commanded by lines, measured by the operating system.

Rules:
- A child answers every line of stdin with one line of JSON on stdout, and ends when its stdin ends; so nothing
  outlives the benchmark, however that ends.
- CPU is what the scheduler charged, of all threads, from /proc/PID/task/*/schedstat: nanoseconds, where
  utime + stime of /proc/PID/stat come in ticks of 10 ms. (Both hold user and kernel time: the work of the
  loopback's receiving side that the kernel does inside send() is charged to the sender, for every variant alike.)
"""

import json
import os
import resource
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Child", "ChildFailed", "raise_file_limit"]

_LINK = Path(__file__).resolve().parents[2] / "scripts" / "link-packages"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class ChildFailed(Exception):
    """A child ended, did not answer in time, or did not do its command."""


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one. Returns it; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Child:
    """A process that is controlled by lines. A context manager: leaving it ends the process.

    cpu: the CPU it may run on; None: any. folder: the clone whose code it runs; None: this one. gives_way: it runs only
    while no other process of its CPU wants to (SCHED_IDLE).
    """

    def __init__(
        self, argv: Sequence[str], *, cpu: int | None = None, folder: Path | None = None, gives_way: bool = False
    ) -> None:
        self._argv = list(argv)

        def place() -> None:
            if gives_way:
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})

        self._packages = tempfile.TemporaryDirectory(prefix="snorky-bench-")  # of a clone that is not installed
        env = dict(os.environ)
        if folder is not None:
            subprocess.run([sys.executable, str(_LINK), self._packages.name, str(folder)], check=True)
            env["PYTHONPATH"] = self._packages.name
        self._stderr = tempfile.TemporaryFile()  # printed only if the process fails: a server may write a lot
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=folder,
            env=env,
            preexec_fn=place,  # before exec, so that its threads inherit it
        )
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """End the process: stdin closed, then killed after 10 s. Idempotent."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # it ended by itself
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()
        self._packages.cleanup()

    def ask(self, command: str, timeout_s: float = 120.0) -> dict[str, float]:
        """Send a command and return its answer. Raises ChildFailed."""
        self.begin(command)
        return self.answer(timeout_s)

    def begin(self, command: str) -> None:
        """Send a command; the caller must call `answer` later. Raises ChildFailed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failure(f"ended before {command!r}") from error

    def answer(self, timeout_s: float = 120.0) -> dict[str, float]:
        """Return the next line of JSON. Raises ChildFailed: none within timeout_s, or the process ended."""
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            if not select.select([out], [], [], timeout_s)[0]:
                raise self._failure(f"said nothing for {timeout_s} s")
            chunk = os.read(out, 65536)
            if not chunk:
                raise self._failure(f"ended with {self._process.wait()}")
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, float] = json.loads(line)
        return answer

    def cpu_s(self) -> float:
        """CPU seconds charged to the process until now, user and system."""
        try:
            tasks = list(Path(f"/proc/{self.pid}/task").iterdir())
            return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        except (FileNotFoundError, IndexError):  # a kernel without schedstat
            fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) * _TICK_S

    def waited_s(self) -> float:
        """Seconds until now in which the process was runnable, but others had the CPU; 0 if unknown."""
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        except (FileNotFoundError, IndexError):
            return 0.0

    def rss_bytes(self) -> int:
        """Resident memory, in bytes. Buffers in the kernel are not in it."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise self._failure("has no VmRSS: it ended")

    def _failure(self, text: str) -> ChildFailed:
        self._stderr.seek(0)
        tail = self._stderr.read().decode(errors="replace").strip()[-300:]
        return ChildFailed(f"{Path(self._argv[0]).name} {text}: {tail}")
