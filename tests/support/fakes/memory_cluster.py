"""Several nodes in one process: a shared broker, directory and history, no network, no time.

    async with town(3, lambda: [ChatService()]) as nodes:
        alice = nodes.client(0, "alice")
        bob = nodes.client(1, "bob")
        await alice.ask("chat", "join", channel="room")

auth: makes the authenticator of one node. requires_identity: of all clients. limits: of all nodes.
late: the directory answers up to this many loop iterations after the publication of the change: in a real cluster the
answer uses another connection, and other events may be handled before it is read.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from snorky.gateway import Entered, Limits, Member, Node, Service, ServiceRegistry
from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.contracts.directory import RosterSnapshot
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.codec import decode_json
from tests.support.fakes.fake_wire import JSON, UNLIMITED, Client, until
from tests.support.fakes.loopback import LoopbackBroker
from tests.support.fakes.memory_directory import MemoryCluster, MemoryDirectory
from tests.support.fakes.memory_history import Archive, MemoryHistory

__all__ = ["Bus", "BusBroker", "LateDirectory", "Resident", "Town", "town"]


class Bus:
    """Delivers publications of any node to all brokers, in one order."""

    def __init__(self) -> None:
        self.brokers: list[BusBroker] = []
        self.published: list[tuple[str, bytes]] = []

    def publish(self, key: str, payload: bytes) -> None:
        """Deliver in the next loop iteration to those subscribed then."""
        self.published.append((key, payload))
        for broker in self.brokers:
            asyncio.get_running_loop().call_soon(broker.hear, key, payload)


class BusBroker(LoopbackBroker):
    """A node's end of a bus. is_lossy: publications are dropped; between `hold` and `let_go` they wait."""

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self.is_lossy = False
        self._waiting: list[tuple[str, bytes]] | None = None
        self._bus = bus
        bus.brokers.append(self)

    def publish(self, key: str, payload: bytes) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.is_failing:
            future.set_exception(BrokerUnavailable(key))
            future.exception()
        else:
            self._bus.publish(key, payload)
            future.set_result(1)
        return future

    def hear(self, key: str, payload: bytes) -> None:
        """Receive from the bus."""
        if self._waiting is not None:
            self._waiting.append((key, payload))
        elif not self.is_lossy:
            self._bring(key, payload)

    def hold(self) -> None:
        """Deliver nothing for now."""
        self._waiting = []

    def let_go(self) -> None:
        """Deliver what was held, in order."""
        waiting, self._waiting = self._waiting or [], None
        for key, payload in waiting:
            self._bring(key, payload)


class LateDirectory(MemoryDirectory):
    """A directory whose answers are late."""

    def __init__(self, cluster: MemoryCluster, node_id: str, late: int, chance: random.Random) -> None:
        super().__init__(cluster, node_id)
        self._late = late
        self._chance = chance

    async def enter(self, *args: Any, **kwargs: Any) -> Entered:
        entered = await super().enter(*args, **kwargs)
        await self._dawdle()
        assert entered is not None
        return entered

    async def members(self, roster: str) -> list[Member]:
        members = await super().members(roster)
        await self._dawdle()
        return members

    async def listed(self, roster: str) -> RosterSnapshot:
        census = await super().listed(roster)
        await self._dawdle()
        return census

    async def leave(self, *args: Any, **kwargs: Any) -> bool:
        has_left = await super().leave(*args, **kwargs)
        await self._dawdle()
        return has_left

    async def claim(self, *args: Any, **kwargs: Any) -> bool:
        has_it = await super().claim(*args, **kwargs)
        await self._dawdle()
        return has_it

    async def _dawdle(self) -> None:
        for _ in range(self._chance.randint(0, self._late)):
            await asyncio.sleep(0)


class Resident(Client):
    """A client of a town. inbox: all messages that it got, in order. answers: those of them that are, by call id.

    envelopes: the same with their services.
    """

    def __init__(self, node: Node, registry: ServiceRegistry, identity: str | None) -> None:
        super().__init__(node, registry, JSON)
        self.connection.identity = identity
        self.calls = 0
        self.answers: dict[Any, Any] = {}
        self._inbox: list[Any] = []
        self._envelopes: list[Any] = []
        self._read = 0

    @property
    def inbox(self) -> list[Any]:
        writes = self.wire.writes[self._read :]
        self._read += len(writes)
        for line in b"".join(writes).splitlines():
            envelope: Any = decode_json(line)
            message = envelope["message"]
            self._inbox.append(message)
            self._envelopes.append(envelope)
            if message["type"] in ("response", "error"):
                self.answers[message.get("callId")] = message
        return self._inbox

    @property
    def envelopes(self) -> list[Any]:
        return self._envelopes if self.inbox else []

    @property
    def notifications(self) -> list[Any]:
        """All messages but the answers, in order."""
        return [message for message in self.inbox if message["type"] not in ("response", "error")]

    async def hears(self, notification: Any) -> None:
        """Wait for a notification."""
        await until(lambda: notification in self.notifications)

    async def notified(self, count: int) -> list[Any]:
        """Wait for that many notifications; returns them all."""
        await until(lambda: len(self.notifications) >= count)
        return self.notifications

    def call(self, service: str, command: str, **params: Any) -> int:
        """Send a request; returns its call id."""
        self.calls += 1
        self.send(service, {"command": command, "params": params, "callId": self.calls})
        return self.calls

    async def answer(self, call_id: int) -> Any:
        """Wait for an answer; returns its data, or `Error: TEXT`."""
        await until(lambda: (self.inbox and call_id in self.answers) or self.connection.is_closed)
        assert call_id in self.answers, f"closed instead of an answer: {self.wire.closes}"
        answer = self.answers[call_id]
        return answer["data"] if answer["type"] == "response" else f"Error: {answer['message']}"

    async def ask(self, service: str, command: str, **params: Any) -> Any:
        """Send a request and wait for its answer."""
        return await self.answer(self.call(service, command, **params))


class Town:
    """Nodes n0, n1, ... with one registry each."""

    def __init__(
        self,
        count: int,
        services: Callable[[], Iterable[Service]],
        *,
        late: int = 0,
        seed: int = 0,
        auth: Callable[[Metrics], Authenticator] | None = None,
        requires_identity: bool = False,
        compare_every_s: float = 20.0,
        grace_s: float = 12.0,
        limits: Limits = UNLIMITED,
    ) -> None:
        self.bus = Bus()
        self.cluster = MemoryCluster(self.bus.publish)
        self.archive = Archive(self.bus.publish)
        self.nodes: list[Node] = []
        self.brokers: list[BusBroker] = []
        self.directories: list[LateDirectory] = []
        self.registries: list[ServiceRegistry] = []
        chance = random.Random(seed)
        for number in range(count):
            self.brokers.append(BusBroker(self.bus))
            self.directories.append(LateDirectory(self.cluster, f"n{number}", late, chance))
            metrics = Metrics()
            node = Node(
                self.brokers[-1],
                self.directories[-1],
                MemoryHistory(self.archive),
                limits=limits,
                metrics=metrics,
                node_id=f"n{number}",
                auth=None if auth is None else auth(metrics),
                compare_every_s=compare_every_s,
                grace_s=grace_s,
            )
            self.registries.append(ServiceRegistry(services(), requires_identity=requires_identity))
            node.attach(self.registries[-1])
            self.nodes.append(node)

    def client(self, number: int, identity: str | None = None) -> Resident:
        """Connect a client to a node; numbers wrap around."""
        at = number % len(self.nodes)
        return Resident(self.nodes[at], self.registries[at], identity)


@asynccontextmanager
async def town(
    count: int,
    services: Callable[[], Iterable[Service]],
    *,
    late: int = 0,
    seed: int = 0,
    auth: Callable[[Metrics], Authenticator] | None = None,
    requires_identity: bool = False,
    compare_every_s: float = 20.0,
    grace_s: float = 12.0,
    limits: Limits = UNLIMITED,
) -> AsyncIterator[Town]:
    """Run nodes; closes all their clients at the end."""
    built = Town(
        count,
        services,
        late=late,
        seed=seed,
        auth=auth,
        requires_identity=requires_identity,
        compare_every_s=compare_every_s,
        grace_s=grace_s,
        limits=limits,
    )
    for node in built.nodes:
        await node.start()
    try:
        yield built
    finally:
        for node in built.nodes:
            for connection in node.connections:
                node.disconnect(connection, 1001)
        for node in built.nodes:
            await node.stop()
