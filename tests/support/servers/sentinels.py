"""A test's own primary, replica and three sentinels, and faults of them.

    async with SentinelLab("redis", tmp_path) as lab: ... lab.url, lab.primary.kill()

Sentinels and replicas log in as their own users, so each can be locked out of a server that other clients still
reach: this simulates a network partition.
"""

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from snorky.gateway.redis.connection.resp import ConnectionLost, DialError, ask, command, dial
from snorky.gateway.redis.target import target_from_url
from tests.support.processes.nodes import Process
from tests.support.processes.tools import free_port
from tests.support.servers.redis_servers import RedisServer, require

__all__ = ["NAME", "SentinelLab"]

NAME: Final = "main"
DOWN_AFTER_S: Final = 1.0
KNOWN_WITHIN_S: Final = 20.0  # a sentinel checks each server every 10 s
_SECRET: Final = "observed"
_USERS: Final = [
    *(f"user {user} on >{_SECRET} ~* &* +@all" for user in ("sentinel", "replica")),
    "user default on nopass ~* &* +@all -ping",  # otherwise a sentinel that is locked out continues as the default user
]


class _Sentinel:
    """One sentinel process."""

    def __init__(self, kind: str, directory: Path, primary_port: int) -> None:
        self.port = free_port()
        self._directory = directory
        self._conf = directory / f"sentinel-{self.port}.conf"
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {directory}",
            f"sentinel monitor {NAME} 127.0.0.1 {primary_port} 2",
            f"sentinel auth-user {NAME} sentinel",
            f"sentinel auth-pass {NAME} {_SECRET}",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_S * 1000:.0f}",
            f"sentinel failover-timeout {NAME} 6000",
        ]
        self._conf.write_text("\n".join(lines) + "\n")  # and a sentinel writes its discoveries there
        self._argv = [require(kind), str(self._conf), "--sentinel"]
        self.process: Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.process = Process(self._argv, cwd=self._directory, ready=r"\+monitor master")
        await self.process.wait_ready()

    async def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            await process.close()


class SentinelLab:
    """primary, replica: at the start; after a failover the replica is the primary. kind: one of REAL_KINDS."""

    def __init__(self, kind: str, directory: Path) -> None:
        replicating = [*_USERS, "masteruser replica", f"masterauth {_SECRET}", "repl-diskless-sync-delay 0"]
        self.primary = RedisServer(kind, directory, conf=replicating)
        self.replica = RedisServer(kind, directory, conf=[*replicating, f"replicaof 127.0.0.1 {self.primary.port}"])
        self.sentinels = [_Sentinel(kind, directory, self.primary.port) for _ in range(3)]
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/{NAME}/0"

    async def __aenter__(self) -> Self:
        """Start all; returns when each sentinel knows the two others and the replica."""
        try:
            for server in (self.primary, self.replica):
                await self._stack.enter_async_context(server)
            await self._until(self.replica.url, "INFO", "replication", claim=b"master_link_status:up")
            for sentinel in self.sentinels:
                self._stack.push_async_callback(sentinel.stop)
                await sentinel.start()
            for sentinel in self.sentinels:
                await self._until(sentinel.url, "SENTINEL", "SENTINELS", NAME, claim=2)
                await self._until(sentinel.url, "SENTINEL", "REPLICAS", NAME, claim=1)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def isolate_primary(self) -> None:
        """Cut the primary off from the sentinels and the replica; other clients still reach it, and may write."""
        await self._lock_out("sentinel", "replica")

    async def let_replica_lag(self) -> None:
        """Stop replication from now on; the sentinels notice nothing."""
        await self._lock_out("replica")

    async def demote_primary(self) -> None:
        """Make it a replica by hand; the sentinels are slow to notice."""
        await self._tell_primary("REPLICAOF", "127.0.0.1", self.replica.port)

    async def promote_primary(self) -> None:
        """Undo `demote_primary`."""
        await self._tell_primary("REPLICAOF", "NO", "ONE")

    async def until_replicated(self) -> None:
        """Return when the replica has everything that the primary has stored until now."""
        assert await self._tell_primary("WAIT", 1, 10_000) == 1

    async def until_failed_over(self, *, within_s: float = 15.0) -> None:
        """Return when the replica is the primary, to itself and to a majority of the running sentinels."""
        await self._until(self.replica.url, "ROLE", claim=b"master", within_s=within_s)
        where = b"%d" % self.replica.port
        for sentinel in self.sentinels:
            if sentinel.process is not None:
                ask = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
                await self._until(sentinel.url, *ask, claim=where, within_s=within_s)

    async def _lock_out(self, *users: str) -> None:
        for user in users:
            await self._tell_primary("ACL", "SETUSER", user, "off")
            await self._tell_primary("CLIENT", "KILL", "USER", user)

    async def _tell_primary(self, *words: object) -> Any:
        client = self.primary.client()
        try:
            return await client.execute_command(*words)
        finally:
            await client.aclose()

    @staticmethod
    async def _until(url: str, *words: str, claim: object, within_s: float = KNOWN_WITHIN_S) -> None:
        """Ask a server until the answer contains this, or has this many entries."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        answer: Any = None
        while loop.time() < deadline:
            with suppress(DialError):  # a sentinel closes all connections of the server that it promotes
                wire = await dial(target_from_url(url), name="lab", timeout_s=5.0)
                try:
                    (answer,) = await ask(wire, command(*(word.encode() for word in words)))
                finally:
                    wire.close(ConnectionLost("asked"))
                    await wire.wait_closed()
                if len(answer) == claim if isinstance(claim, int) else claim in answer:
                    return
            await asyncio.sleep(0.05)  # a server cannot be awaited
        raise AssertionError(f"not within {within_s} s: {words} says {answer!r}")
