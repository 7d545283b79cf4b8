"""Directories under test: nodes with a scripted LocalState, on any kind of server or in memory.

    async with open_cluster(kind, shared) as cluster:
            await cluster.listen("chat:room")
        a, b = await cluster.node("a"), await cluster.node("b")
        await a.enter("chat:room", 1, "alice")
        await cluster.until(lambda: cluster.heard("chat:room") == [b"joined alice"])

A `FakeNode` stores the entries of its connections, as a real node does, so that it can register them again.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from snorky.gateway.contracts.broker import Broker
from snorky.gateway.contracts.directory import Directory, Member, Owner
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import RedisDirectory, RedisTarget, Timings
from snorky.gateway.redis.backend import parts_of
from snorky.gateway.redis.connection.timeouts import RedisTimeouts
from snorky.gateway.redis.multi.broker import SpreadBroker
from snorky.gateway.redis.multi.directory import SpreadDirectory, tag_of
from snorky.gateway.redis.multi.hashing import targets_of
from snorky.gateway.testing.directory import MemoryDirectory, SharedDirectory
from tests.support.fakes.brokers import PREFIX, Recorder, broker_of, brokers_of, hears
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.redis_servers import AnyServer
from tests.support.servers.shared import SharedServers

__all__ = [
    "FAST",
    "PATIENT",
    "REAL",
    "FakeNode",
    "MemoryTestCluster",
    "RedisTestCluster",
    "TestCluster",
    "open_cluster",
    "scaled",
]


def scaled(factor: float) -> Timings:
    """Scale the promised timings by a factor, and clean up dead nodes often enough for a test."""
    given = Timings()
    return Timings(
        ttl_s=given.ttl_s * factor,
        renew_s=given.renew_s * factor,
        look_s=given.look_s * factor,
        sighting_s=given.sighting_s * factor,
        hold_s=given.hold_s * factor,
        sweep_s=given.hold_s * factor,
        claim_ttl_s=60.0,
    )


REAL = scaled(1.0)
FAST = scaled(0.1)
PATIENT = replace(FAST, ttl_s=REAL.ttl_s)  # a busy machine may stop a test for a second: its nodes keep their leases


class FakeNode:
    """A LocalState that stores what it entered and claimed, and records its calls."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.directory: Directory = None  # type: ignore[assignment]  # set at once by its maker
        self.held: dict[tuple[str, int, str], Member] = {}
        self.names: dict[tuple[str, str], tuple[int, str | None]] = {}
        self.lost: list[tuple[str, str, int]] = []
        self.direct: list[tuple[int, bytes]] = []
        self.gone: set[int] = set()

    # -- calls of a service --------------------------------------------------------------------------------------

    async def enter(self, roster: str, serial: int, identity: str, *, entry: str = "", data: object = None) -> bool:
        """Enter and store; True if it is the identity's first."""
        entered = await self.directory.enter(roster, serial, identity, entry=entry, data=data)
        owner = Owner(self.node_id, self.directory.incarnation, serial)
        self.held[roster, serial, entry] = Member(identity, owner, entry, data)
        return entered.is_first

    async def leave(self, roster: str, serial: int, *, entry: str = "") -> bool:
        """Leave and remove."""
        self.held.pop((roster, serial, entry), None)
        return await self.directory.leave(roster, serial, entry=entry)

    async def claim(self, names: str, name: str, serial: int, identity: str | None = None) -> bool:
        """Claim and store."""
        has_it = await self.directory.claim(names, name, serial, identity)
        if has_it:
            self.names[names, name] = (serial, identity)
        return has_it

    async def disowned(self, serial: int) -> None:
        """Release a connection."""
        self.held = {key: member for key, member in self.held.items() if key[1] != serial}
        self.names = {key: each for key, each in self.names.items() if each[0] != serial}
        await self.directory.disowned(serial)

    # -- LocalState --------------------------------------------------------------------------------------------------

    def local_members(self) -> Iterable[tuple[str, Member]]:
        return [(key[0], member) for key, member in self.held.items()]

    def local_names(self) -> Iterable[tuple[str, str, int, str | None]]:
        return [(names, name, serial, identity) for (names, name), (serial, identity) in self.names.items()]

    def notice(self, roster: str, member: Member, *, has_joined: bool, is_identity: bool) -> bytes | None:
        if roster.startswith("silent:"):
            return None
        kind = "joined" if has_joined else "left"
        words = [kind if is_identity else kind + "-entry", member.identity]
        return " ".join(words + ([member.entry] if member.entry else [])).encode()

    def on_lost_name(self, names: str, name: str, serial: int) -> None:
        self.lost.append((names, name, serial))
        self.names.pop((names, name), None)

    def on_direct(self, serial: int, message: bytes) -> bool:
        if serial in self.gone:
            return False
        self.direct.append((serial, message))
        return True


def _bare(notice: bytes) -> bytes:
    """Remove the versions that the directory prepends to a change's notice."""
    return re.sub(rb"^\xc13 \d+ \d+ ", b"", notice)


def _versions(notice: bytes) -> tuple[int, int]:
    version, previous = notice.split(b" ", 3)[1:3]
    return int(version), int(previous)


class MemoryTestCluster:
    """Nodes of `MemoryDirectory`."""

    def __init__(self) -> None:
        self.state = SharedDirectory()

    async def listen(self, *rosters: str) -> None:
        """Subscribe to these rosters' channels."""

    def heard(self, roster: str) -> list[bytes]:
        """All that was published to a roster's channel since `listen`."""
        return [_bare(notice) for key, notice in self.state.published if key == roster]

    def versions_heard(self, roster: str) -> list[tuple[int, int]]:
        """Version and previous version of each."""
        return [_versions(notice) for key, notice in self.state.published if key == roster]

    async def until(self, claim: Callable[[], object], *, within_s: float = 30.0) -> None:
        """Wait until a condition is true; in memory it is at once."""
        for _ in range(3):
            await asyncio.sleep(0)
        assert claim()

    async def node(self, node_id: str, *, roster_max_bytes: int = 0) -> FakeNode:
        """Start a node. roster_max_bytes: of all of them; 0 = unlimited."""
        self.state.roster_max_bytes = roster_max_bytes
        node = FakeNode(node_id)
        node.directory = MemoryDirectory(self.state, node_id)
        await node.directory.start(node)
        return node

    async def crash(self, node: FakeNode) -> None:
        """End a node as SIGKILL does."""
        assert isinstance(node.directory, MemoryDirectory)
        node.directory.die()


class RedisTestCluster:
    """Nodes of `RedisDirectory`, each with its broker, and an observer that receives what they publish.

    On one server, or on several: then all of them are of the spread kind.
    """

    def __init__(self, server: AnyServer | ClusterLab, stack: AsyncExitStack, timings: Timings) -> None:
        self.server = server
        self._stack = stack
        self._timings = timings
        self._recorder = Recorder()
        self._observer = broker_of(server.url, node_id="observer", metrics=Metrics())
        self._brokers: dict[str, Broker] = {}

    async def _start(self, broker: Broker, listener: Any) -> None:
        await broker.start(listener)
        self._stack.push_async_callback(broker.stop)
        await hears(broker)

    async def listen(self, *rosters: str) -> None:
        """Subscribe to these rosters' channels."""
        await self._start(self._observer, self._recorder)
        await asyncio.gather(*(self._observer.subscribe(roster) for roster in rosters))

    def heard(self, roster: str) -> list[bytes]:
        """All that was published to a roster's channel since `listen`."""
        return list(map(_bare, self._recorder.of(roster)))

    def versions_heard(self, roster: str) -> list[tuple[int, int]]:
        """Version and previous version of each."""
        return list(map(_versions, self._recorder.of(roster)))

    def heard_anywhere(self) -> list[tuple[str, bytes]]:
        """All that was published to any of them, (roster, notice)."""
        return [(roster, _bare(notice)) for roster, notice in self._recorder.publications]

    async def until(self, claim: Callable[[], object], *, within_s: float = 30.0) -> None:
        """Wait until a condition is true. Raises AssertionError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while not claim():
            assert loop.time() < deadline, f"not within {within_s} s; heard {self._recorder.publications[-20:]}"
            await asyncio.sleep(0.02)  # the calls of a FakeNode cannot be awaited

    async def node(
        self, node_id: str, *, timings: Timings | None = None, timeout_s: float = 5.0, roster_max_bytes: int = 0
    ) -> FakeNode:
        """Start a node."""
        node = FakeNode(node_id)
        metrics = Metrics()
        targets = targets_of(self.server.url)
        brokers = brokers_of(self.server.url, node_id=node_id, metrics=metrics)
        broker = brokers.first if len(brokers) == 1 else SpreadBroker(brokers, metrics=metrics)
        self._brokers[node_id] = broker
        await self._start(broker, Recorder())

        def directory_of(identity: str, target: RedisTarget) -> RedisDirectory:
            parts = parts_of(
                target,
                prefix=PREFIX,
                node_id=node_id,
                metrics=metrics,
                timeouts=RedisTimeouts(directory_timeout_s=timeout_s),
            )
            return parts.directory(
                brokers.at(identity),
                timings=timings or self._timings,
                tag="" if len(brokers) == 1 else tag_of(identity),
                roster_max_bytes=roster_max_bytes,
            )

        directories = targets.map(directory_of)
        node.directory = directories.first if len(brokers) == 1 else SpreadDirectory(directories)
        await node.directory.start(node)
        self._stack.push_async_callback(node.directory.stop)
        return node

    async def crash(self, node: FakeNode) -> None:
        """End a node as SIGKILL does: its connections are gone, and it sent nothing."""
        spread: Any = node.directory
        for directory in [spread] if isinstance(spread, RedisDirectory) else spread._directories:
            await directory._lease.abandon()  # no resigning
            directory._lease._renewed_at = None
            await directory.stop()
        await self._brokers[node.node_id].stop()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """Provide a client of the test's own."""
        client = self.server.client()
        try:
            yield client
        finally:
            await client.aclose()


TestCluster = MemoryTestCluster | RedisTestCluster


@asynccontextmanager
async def open_cluster(kind: str, shared: SharedServers, *, timings: Timings = PATIENT) -> AsyncIterator[TestCluster]:
    """Make a cluster without nodes. kind: of server, or "memory"."""
    if kind == "memory":
        yield MemoryTestCluster()
        return
    async with shared.lend(kind) as server, AsyncExitStack() as stack:
        yield RedisTestCluster(server, stack, timings)
