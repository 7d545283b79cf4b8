"""The machine that the figures belong to, and the CPUs that its processes use."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

__all__ = ["describe", "receiver_cpu", "server_cpu"]


def server_cpu() -> int | None:
    """The CPU of the measured server; None: there is only one, nothing is pinned."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0] if len(cpus) > 1 else None


def receiver_cpu() -> int | None:
    """The CPU of everything else: receiver, publisher, Redis, harness."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[1] if len(cpus) > 1 else None


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
