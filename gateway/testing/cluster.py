"""MemoryCluster: several nodes in one process, with a shared broker, directory and history. No network, no Redis.

Rules:
- Messages take loop iterations, not time: a test over three nodes takes milliseconds.
- The nodes are real. Only the broker, the directory, the history and the clients' transports are in memory; they
  pass the same contract tests as those of Redis.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.config.settings import Limits
from snorky.gateway.contracts.hooks import Hooks
from snorky.gateway.contracts.limits import LocalLimitStore, SharedUnits
from snorky.gateway.metrics import Metrics
from snorky.gateway.node import Node
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.gateway.sdk.service import Service
from snorky.gateway.testing.broker import Bus, BusBroker
from snorky.gateway.testing.client import MemoryClient
from snorky.gateway.testing.control import MemoryControlLog, MemorySubscriptionStore, SharedOrders
from snorky.gateway.testing.directory import LateDirectory, SharedDirectory
from snorky.gateway.testing.history import Archive, MemoryHistory

__all__ = ["UNLIMITED", "MemoryCluster", "memory_cluster", "settle"]

UNLIMITED: Final = Limits(messages_per_s=1e9, messages_burst=1_000_000, client_errors_per_minute=1_000_000)


class MemoryCluster:
    """Nodes n0, n1, ... with one registry each. Use `memory_cluster`, which also starts and stops them.

    nodes, registries, brokers, directories: by number. bus, directory, archive: what the nodes share.
    """

    def __init__(
        self,
        count: int,
        services: Callable[[], Iterable[Service]],
        *,
        late: int = 0,
        seed: int = 0,
        auth: Callable[[Metrics], Authenticator] | None = None,
        hooks: Hooks | None = None,
        requires_identity: bool = False,
        compare_every_s: float = 20.0,
        grace_s: float = 12.0,
        limits: Limits = UNLIMITED,
        cluster_limits: ClusterLimits | None = None,
        deadline_s: float = 5.0,
    ) -> None:
        self.bus = Bus()
        self.directory = SharedDirectory(self.bus.publish)
        self.archive = Archive(self.bus.publish)
        self.orders = SharedOrders()
        self.control_logs: list[MemoryControlLog] = []
        self.units = SharedUnits()
        self.limit_stores: list[LocalLimitStore] = []
        self.subscription_store = MemorySubscriptionStore(self.orders)
        self.nodes: list[Node] = []
        self.brokers: list[BusBroker] = []
        self.directories: list[LateDirectory] = []
        self.registries: list[ServiceRegistry] = []
        self._clients: list[tuple[Node, MemoryClient]] = []
        self._deadline_s = deadline_s
        chance = random.Random(seed)  # noqa: S311 - no secret: the same seed gives the same delays
        for number in range(count):
            self.brokers.append(BusBroker(self.bus))
            self.directories.append(LateDirectory(self.directory, f"n{number}", late, chance))
            self.control_logs.append(MemoryControlLog(self.orders, f"n{number}"))
            self.limit_stores.append(LocalLimitStore(self.units, f"n{number}"))
            metrics = Metrics()
            node = Node(
                self.brokers[-1],
                self.directories[-1],
                MemoryHistory(self.archive),
                limits=limits,
                metrics=metrics,
                node_id=f"n{number}",
                auth=None if auth is None else auth(metrics),
                hooks=hooks,
                control_log=self.control_logs[-1],
                cluster_limits=cluster_limits,
                limit_store=self.limit_stores[-1],
                subscription_store=self.subscription_store,
                compare_every_s=compare_every_s,
                grace_s=grace_s,
            )
            self.registries.append(ServiceRegistry(services(), requires_identity=requires_identity))
            node.attach(self.registries[-1])
            self.nodes.append(node)

    async def connect(self, node: int = 0, identity: str | None = None) -> MemoryClient:
        """Connect a client to a node. identity: the client's, as if it had logged in; None: anonymous.

        Raises LimitExceeded, BrokerUnavailable: `cluster_limits` do not admit it now.
        """
        units = await self.nodes[node].cluster_limits.counts.enter(identity, "")
        client = MemoryClient(self.nodes[node], self.registries[node], identity, deadline_s=self._deadline_s)
        self.nodes[node].cluster_limits.counts.bind(client.connection, units)
        self._clients.append((self.nodes[node], client))
        await asyncio.sleep(0)
        return client

    async def settle(self) -> None:
        """Run everything that is ready, and what that makes ready. Before a check that nothing arrived."""
        await settle()

    def kill(self, node: int) -> None:
        """End a node as SIGKILL does: its clients are closed with 1006, the others release what these owned."""
        self.brokers[node].is_lossy = True
        self.directories[node].die()
        self.control_logs[node].die()
        self.limit_stores[node].die()
        for of, client in self._clients:
            if of is self.nodes[node] and not client.is_closed:
                client.disconnect(1006)

    @contextmanager
    def messages_delayed(self, node: int) -> Iterator[None]:
        """Deliver publications to this node only after the block, in order."""
        self.brokers[node].hold()
        try:
            yield
        finally:
            self.brokers[node].let_go()

    @contextmanager
    def messages_lost(self, node: int) -> Iterator[None]:
        """Lose all publications to this node. After the block the node notices that its connection was interrupted,
        and repairs channels with a history, and rosters."""
        self.brokers[node].is_lossy = True
        try:
            yield
        finally:
            self.brokers[node].is_lossy = False
            self.nodes[node].on_interrupted()

    @contextmanager
    def orders_delayed(self, node: int) -> Iterator[None]:
        """Let this node read control orders only after the block, as a node that is paused does."""
        self.control_logs[node].hold()
        try:
            yield
        finally:
            self.control_logs[node].let_go()

    @contextmanager
    def redis_unavailable(self) -> Iterator[None]:
        """Let everything that needs Redis raise BrokerUnavailable."""
        self._fail(True)
        try:
            yield
        finally:
            self._fail(False)

    def _fail(self, is_failing: bool) -> None:
        self.directory.is_failing = self.archive.is_failing = is_failing
        self.orders.is_failing = self.units.is_failing = is_failing
        for broker in self.brokers:
            broker.is_failing = is_failing

    async def start(self) -> None:
        """Start all nodes."""
        for node in self.nodes:
            await node.start()

    async def stop(self) -> None:
        """Close all clients, and stop all nodes."""
        for node in self.nodes:
            for connection in node.connections:
                node.disconnect(connection, 1001)
        for node in self.nodes:
            await node.stop()


@asynccontextmanager
async def memory_cluster(
    count: int,
    services: Callable[[], Iterable[Service]],
    *,
    late: int = 0,
    seed: int = 0,
    auth: Callable[[Metrics], Authenticator] | None = None,
    hooks: Hooks | None = None,
    requires_identity: bool = False,
    compare_every_s: float = 20.0,
    grace_s: float = 12.0,
    limits: Limits = UNLIMITED,
    cluster_limits: ClusterLimits | None = None,
    deadline_s: float = 5.0,
) -> AsyncIterator[MemoryCluster]:
    """Run so many nodes, and stop them after the block.

    services: called once for each node; returns its services. deadline_s: of every wait of a client.
    late: replies of the directory (rosters, names, tokens) arrive up to this many loop iterations late, so that
    notices may overtake them, as with Redis; drawn at random from `seed`. auth: makes the authenticator of one node.
    hooks: the HTTP hooks of all nodes, or a double of them. requires_identity: refuse clients without an identity.
    limits: of all nodes; by default the rates are unlimited. cluster_limits: of all together. compare_every_s: how
    often nodes compare their positions with the history. grace_s: how long a member that a node misses after an
    interruption counts as present.
    """
    cluster = MemoryCluster(
        count,
        services,
        late=late,
        seed=seed,
        auth=auth,
        hooks=hooks,
        requires_identity=requires_identity,
        compare_every_s=compare_every_s,
        grace_s=grace_s,
        limits=limits,
        cluster_limits=cluster_limits,
        deadline_s=deadline_s,
    )
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


async def settle(ticks: int = 20) -> None:
    """Run everything that is ready, and what that makes ready. For proving absence: nothing here waits for time."""
    for _ in range(ticks):
        await asyncio.sleep(0)
