"""A test's own Redis Cluster: primaries, optionally with a replica each, and slots that can be moved.

async with ClusterLab("redis", tmp_path, replicas=1) as lab: ... lab.url; await lab.move_slot(slot_of(b"x"), 1)
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from snorky.gateway.redis.cluster.slots import SLOTS, slot_of
from snorky.gateway.redis.connection.resp import ConnectionLost, ask, command, dial
from snorky.gateway.redis.target import target_from_url
from tests.support.processes.tools import free_port
from tests.support.servers.redis_servers import RedisServer

__all__ = ["ClusterClient", "ClusterLab"]

NODE_TIMEOUT_MS: Final = 1000
AGREED_WITHIN_S: Final = 20.0


class ClusterLab:
    """kind: one of REAL_KINDS. servers: the primaries, then their replicas in the same order."""

    kind = "cluster"

    def __init__(self, kind: str, directory: Path, *, primaries: int = 3, replicas: int = 0) -> None:
        self.primaries = primaries
        self.servers: list[RedisServer] = []
        self._buses: list[int] = []
        self._directory = directory
        for _ in range(primaries * (1 + replicas)):
            self._make_server(kind)
        self._ids: list[str] = []
        self._stack = AsyncExitStack()

    def _make_server(self, kind: str) -> RedisServer:
        self._buses.append(free_port())
        conf = [
            "cluster-enabled yes",
            f"cluster-config-file nodes-{len(self.servers)}.conf",
            f"cluster-port {self._buses[-1]}",
            f"cluster-node-timeout {NODE_TIMEOUT_MS}",
            "repl-diskless-sync-delay 0",
        ]
        self.servers.append(RedisServer(kind, self._directory, conf=conf))
        return self.servers[-1]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    async def __aenter__(self) -> Self:
        """Start all; returns when each server knows all others and every slot is assigned."""
        try:
            async with asyncio.TaskGroup() as starting:
                for server in self.servers:
                    starting.create_task(self._stack.enter_async_context(server))
            self._ids = [await self.ask(at, "CLUSTER", "MYID") for at in range(len(self.servers))]
            for at in range(self.primaries):
                first, last = SLOTS * at // self.primaries, SLOTS * (at + 1) // self.primaries - 1
                await self.ask(at, "CLUSTER", "ADDSLOTSRANGE", first, last)
                await self.ask(at, "CLUSTER", "SET-CONFIG-EPOCH", at + 1)
            for at in range(1, len(self.servers)):
                await self.ask(at, "CLUSTER", "MEET", "127.0.0.1", self.servers[0].port, self._buses[0])
            for at in range(len(self.servers)):
                await self._until(at, f"cluster_known_nodes:{len(self.servers)}")
            for at in range(self.primaries, len(self.servers)):
                await self.ask(at, "CLUSTER", "REPLICATE", self._ids[at % self.primaries])
            for at in range(len(self.servers)):
                await self._until(at, "cluster_state:ok")
            for at in range(self.primaries, len(self.servers)):
                await self._until(at, "master_link_status:up", "INFO", "replication")
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def stop(self) -> None:
        """Kill all, as a crash does. Idempotent."""
        for server in self.servers:
            await server.stop()

    async def start(self) -> None:
        """Restart all, empty; they still know each other and their slots."""
        for server in self.servers:
            await server.start()
        for at in range(len(self.servers)):
            await self._until(at, "cluster_state:ok")

    async def restart(self, at: int) -> None:
        """Kill one server and restart it from its last snapshot; returns when the cluster is healthy again."""
        await self.servers[at].restart()
        for each in range(len(self.servers)):
            await self._until(each, "cluster_state:ok")

    async def add(self) -> int:
        """Start another primary, which has no slots yet; returns its number, the highest of all."""
        at = len(self.servers)
        await self._stack.enter_async_context(self._make_server(self.servers[0].kind))
        self._ids.append(await self.ask(at, "CLUSTER", "MYID"))
        await self.ask(at, "CLUSTER", "SET-CONFIG-EPOCH", at + 1)
        await self.ask(at, "CLUSTER", "MEET", "127.0.0.1", self.servers[0].port, self._buses[0])
        for each in range(at + 1):
            await self._until(each, f"cluster_known_nodes:{at + 1}")
            await self._until(each, "cluster_state:ok")
        return at

    def client(self) -> "ClusterClient":
        """A client of the test's own, in the role of another program; close it with `aclose()`."""
        return ClusterClient(self)

    async def open_slot(self, slot: int, source: int, destination: int) -> None:
        """Start to move a slot."""
        await self.ask(destination, "CLUSTER", "SETSLOT", slot, "IMPORTING", self._ids[source])
        await self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self._ids[destination])

    async def move_slot(self, slot: int, source: int, destination: int) -> None:
        """Move a slot with its keys, as `redis-cli --cluster reshard` does: ten at a time, so others see it halfway."""
        await self.open_slot(slot, source, destination)
        while keys := await self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 10):
            await self.migrate(source, destination, *keys)
        for at in (destination, source, *range(self.primaries)):
            await self.ask(at, "CLUSTER", "SETSLOT", slot, "NODE", self._ids[destination])

    async def migrate(self, source: int, destination: int, *keys: bytes) -> None:
        """Move some keys of a slot that is being moved."""
        await self.ask(source, "MIGRATE", "127.0.0.1", self.servers[destination].port, "", 0, 5000, "KEYS", *keys)

    async def until_primary(self, at: int, *, within_s: float = 15.0) -> None:
        """Return when a server has become a primary, and the cluster is healthy again."""
        await self._until(at, "role:master", "INFO", "replication", within_s=within_s)
        await self._until(at, "cluster_state:ok", within_s=within_s)

    async def ask(self, at: int, *words: object, is_sent_on: bool = False) -> Any:
        """Send a server a command. Texts are decoded. is_sent_on: as after an ASK redirect from another server."""
        wire = await dial(target_from_url(self.servers[at].url), name="lab", timeout_s=5.0)
        try:
            spelt = [word if isinstance(word, bytes) else str(word).encode() for word in words]
            *_, answer = await ask(wire, *([command(b"ASKING")] if is_sent_on else []), command(*spelt))
        finally:
            wire.close(ConnectionLost("asked"))
            await wire.wait_closed()
        if isinstance(answer, Exception):
            raise answer
        return answer.decode() if isinstance(answer, bytes) else answer

    async def _until(self, at: int, text: str, *words: str, within_s: float = AGREED_WITHIN_S) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while text not in (answer := await self.ask(at, *(words or ("CLUSTER", "INFO")))):
            assert loop.time() < deadline, f"server {at}: no {text} within {within_s} s: {answer}"
            await asyncio.sleep(0.05)  # a server cannot be awaited


class ClusterClient:
    """The part of a client that channel tests need, with the initial slot map."""

    def __init__(self, lab: ClusterLab) -> None:
        self._lab = lab

    async def publish(self, name: bytes, payload: bytes) -> int:
        """Publish in the Cluster's way."""
        answer: int = await self._lab.ask(self._at(name), "SPUBLISH", name, payload)
        return answer

    async def pubsub_numsub(self, name: bytes) -> list[tuple[bytes, int]]:
        """Count the subscribers of a channel."""
        found, count = await self._lab.ask(self._at(name), "PUBSUB", "SHARDNUMSUB", name)
        return [(found, count)]

    async def ping(self) -> None:
        """Check that all servers answer."""
        for at in range(len(self._lab.servers)):
            await self._lab.ask(at, "PING")

    async def aclose(self) -> None:
        """There is no connection to be closed."""

    def _at(self, name: bytes) -> int:
        return slot_of(name) * self._lab.primaries // SLOTS
