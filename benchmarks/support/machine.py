"""The machine that the figures belong to, and the CPUs that its processes use."""

import os
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

__all__ = ["describe", "ksoftirqd_s", "receiver_cpu", "roles", "server_cpu"]


def server_cpu() -> int | None:
    """The CPU of the measured server; None: there is only one, nothing is pinned."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0] if len(cpus) > 1 else None


def receiver_cpu() -> int | None:
    """The CPU of everything else: receiver, publisher, Redis, harness."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[1] if len(cpus) > 1 else None


@cache
def _ksoftirqd() -> Path | None:
    """The schedstat of the kernel's thread for network work of the server's CPU; None: it cannot be read."""
    name = f"ksoftirqd/{min(os.sched_getaffinity(0))}"
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == name:
                found = comm.with_name("schedstat")
                found.read_text()
                return found
        except OSError:  # it has ended
            continue
    return None


def ksoftirqd_s() -> float | None:
    """CPU seconds until now of that thread: work of sends that is not done within the system call."""
    found = _ksoftirqd()
    return None if found is None else int(found.read_text().split()[0]) / 1e9


def roles() -> str:
    """Say which CPU does what."""
    if (server := server_cpu()) is None:
        return "one CPU for the server and all others"
    return f"CPU {server}: the measured server; CPU {receiver_cpu()}: receivers, publisher, Redis"


def describe() -> list[str]:
    """Lines that describe the machine of the figures."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    gcc = shutil.which("gcc")
    compiler = subprocess.run([gcc, "-dumpfullversion"], capture_output=True, text=True).stdout.strip() if gcc else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvloop"))
    return [
        f"{len(os.sched_getaffinity(0))} CPUs of {model}, {platform.system()} {platform.release()}, "
        f"load before {os.getloadavg()[0]:.1f}",
        f"{platform.python_implementation()} {platform.python_version()}, {packages}, "
        + (f"gcc {compiler}" if gcc else "no gcc: no C loop, and the receiver is Python"),
    ]
