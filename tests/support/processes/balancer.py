"""The shipped nginx and HAProxy in front of a test's nodes: same files, other addresses.

Every substitution must match: if a shipped file changed, the test must fail instead of testing something else.
"""

import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.support.processes.nodes import Process
from tests.support.processes.tools import ROOT, eventually, free_port, program

__all__ = [
    "Backend",
    "Balancer",
    "haproxy_config",
    "nginx_command",
    "nginx_config",
    "running_balancer",
    "running_haproxy",
    "running_nginx",
]

DEPLOY = ROOT / "deploy"


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a node is, instead of node-N."""

    public_port: int
    private_port: int


@dataclass(frozen=True, slots=True)
class Balancer:
    """A running balancer."""

    process: Process
    port: int

    @property
    def websocket_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"


def _replace(text: str, pattern: str, replacement: str, times: int) -> str:
    text, count = re.subn(pattern, replacement, text)
    assert count == times, f"{pattern!r} stands {count} times in the shipped file, not {times}"
    return text


def nginx_config(directory: Path, port: int, backends: Sequence[Backend]) -> Path:
    """Write the shipped nginx.conf with these addresses, and with its files in `directory`."""
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    text = _replace(text, r"listen 8080\b", f"listen 127.0.0.1:{port}", 1)
    text = _replace(text, r"([ \t])/tmp/", rf"\g<1>{directory}/", 6)
    for number, backend in enumerate(backends, 1):
        text = _replace(text, rf"\bnode-{number}:8002\b", f"127.0.0.1:{backend.public_port}", 1)
    path = directory / "nginx.conf"
    path.write_text(text, encoding="utf-8")
    return path


def nginx_command(config: Path, *extra: str) -> list[str]:
    """The command line that runs nginx in the foreground with a configuration."""
    # started as root it would give its folders to a user without access to the test's directory
    directives = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    return [program("nginx"), "-p", str(config.parent), "-c", str(config), "-e", "stderr", "-g", directives, *extra]


def haproxy_config(directory: Path, port: int, backends: Sequence[Backend]) -> Path:
    """Write the shipped haproxy.cfg with these addresses."""
    text = (DEPLOY / "haproxy.cfg").read_text(encoding="utf-8")
    text = _replace(text, r"bind :8080\b", f"bind 127.0.0.1:{port}", 1)
    text = _replace(
        text, r"maxconn 20000\b", "maxconn 2000", 1
    )  # two descriptors each, which a test machine may not allow
    for number, backend in enumerate(backends, 1):
        address = f"127.0.0.1:{backend.public_port} port {backend.private_port}"
        text = _replace(text, rf"(server node-{number}) node-{number}:8002\b", rf"\1 {address}", 1)
    path = directory / "haproxy.cfg"
    path.write_text(text, encoding="utf-8")
    return path


@asynccontextmanager
async def running_nginx(directory: Path, backends: Sequence[Backend]) -> AsyncIterator[Balancer]:
    """Run nginx with the shipped configuration until the block ends."""
    port = free_port()
    config = nginx_config(directory, port, backends)
    async with running_balancer(nginx_command(config), port) as balancer:
        yield balancer


@asynccontextmanager
async def running_haproxy(directory: Path, backends: Sequence[Backend]) -> AsyncIterator[Balancer]:
    """Run HAProxy with the shipped configuration until the block ends."""
    port = free_port()
    config = haproxy_config(directory, port, backends)
    async with running_balancer([program("haproxy"), "-db", "-f", str(config)], port) as balancer:
        yield balancer


@asynccontextmanager
async def running_balancer(argv: Sequence[str], port: int) -> AsyncIterator[Balancer]:
    """Run a command line until the block ends."""
    process = Process(argv)
    try:
        await eventually(lambda: _answers(process, port), within_s=10, what=f"{argv[0]} answers")
        yield Balancer(process, port)
    finally:
        process.terminate()  # nginx's master ends its workers only if it is asked
        await process.wait(10)
        await process.close()


async def _answers(process: Process, port: int) -> bool:
    assert process.is_running, f"the balancer ended:\n{process.log}"
    timeout = aiohttp.ClientTimeout(total=2)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        try:
            async with session.get(f"http://127.0.0.1:{port}/-/balancer") as response:
                return response.status == 200
        except (TimeoutError, aiohttp.ClientError):
            return False
