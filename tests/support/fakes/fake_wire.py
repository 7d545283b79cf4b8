"""Clients of one node without a network, whose broker is in this process; made of parts of `snorky.gateway.testing`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgpack  # type: ignore[import-untyped]  # ships no annotations
import msgspec

from snorky.gateway import Connection, Limits, Node, Service, ServiceRegistry
from snorky.gateway.protocol.codec import Encoding, encode
from snorky.gateway.protocol.ws_frames import BINARY, Dialect
from snorky.gateway.testing.broker import LoopbackBroker
from snorky.gateway.testing.cluster import UNLIMITED, settle
from snorky.gateway.testing.transport import JSON, FakeTransport

__all__ = [
    "JSON",
    "MSGPACK",
    "UNLIMITED",
    "Client",
    "FakeTransport",
    "FullWire",
    "House",
    "house",
    "read_nothing",
    "settle",
    "until",
]

# no framing around a message
MSGPACK = Dialect("msgpack", Encoding.MSGPACK, BINARY, lambda message: message)

DEADLINE_S = 30.0


class FullWire(FakeTransport):
    """The wire of a client that reads nothing: buffers everything, and asks for a pause above `high_water`."""

    def __init__(self, high_water: int = 0) -> None:
        super().__init__()
        self.connection: Connection | None = None  # set by its maker
        self._high_water = high_water

    def write(self, data: bytes) -> None:
        super().write(data)
        self.buffered += len(data)
        if self.buffered > self._high_water and self.connection is not None:
            self.connection.pause()


def read_nothing(client: "Client") -> FullWire:
    """Let a client stop reading."""
    wire = FullWire()
    wire.connection, client.wire = client.connection, wire
    client.connection._wire = wire
    client.connection.write = wire.write
    return wire


class Client:
    """One client of a registry of a node."""

    def __init__(
        self, node: Node, registry: ServiceRegistry, dialect: Dialect = JSON, identity: str | None = None
    ) -> None:
        self.node = node
        self.registry = registry
        self.wire = FakeTransport()
        self.connection = node.new_connection(self.wire, dialect)
        self.connection.identity = identity
        node.connect(self.connection, registry)

    def send(self, service: str, message: Any) -> None:
        self.send_bytes(encode({"service": service, "message": message}, self.connection.dialect.encoding))

    def send_bytes(self, data: bytes) -> None:
        self.registry.receive(self.connection, data)

    def leave(self, code: int = 1000) -> None:
        self.node.disconnect(self.connection, code)

    @property
    def envelopes(self) -> list[Any]:
        """Everything that it was sent, in order."""
        data = b"".join(self.wire.writes)
        if self.connection.dialect.encoding is Encoding.JSON:
            return [msgspec.json.decode(line) for line in data.splitlines()]
        unpacker = msgpack.Unpacker()
        unpacker.feed(data)
        return list(unpacker)

    @property
    def messages(self) -> list[Any]:
        return [envelope["message"] for envelope in self.envelopes]

    async def received(self, count: int) -> list[Any]:
        """Wait for that many messages; returns them all."""
        await until(lambda: len(self.messages) >= count)
        return self.messages


class House:
    """A node with one registry and its own broker."""

    def __init__(
        self, services: Iterable[Service], limits: Limits = UNLIMITED, broker: LoopbackBroker | None = None
    ) -> None:
        self.broker = broker or LoopbackBroker()
        self.node = Node(self.broker, limits=limits, node_id="n1")
        self.registry = ServiceRegistry(services)
        self.node.attach(self.registry)

    def client(self, dialect: Dialect = JSON) -> Client:
        return Client(self.node, self.registry, dialect)

    def sample(self, name: str, **labels: str) -> float:
        """Read one metric; 0 if there is no such series."""
        return self.node.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def house(
    *services: Service, limits: Limits = UNLIMITED, broker: LoopbackBroker | None = None
) -> AsyncIterator[House]:
    """Run a node; closes all its clients at the end."""
    built = House(services, limits, broker)
    await built.node.start()
    try:
        yield built
    finally:
        for connection in built.node.connections:
            built.node.disconnect(connection, 1001)
        await built.node.stop()


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until a condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the condition is somebody else's state, with no event
            await asyncio.sleep(0)
