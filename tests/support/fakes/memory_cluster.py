"""The cluster in memory of `snorky.gateway.testing`, with clients for our own tests, which also read its parts.

    async with town(3, lambda: [ChatService()]) as nodes:
        alice = nodes.client(0, "alice")
        bob = nodes.client(1, "bob")
        await alice.ask("chat", "join", channel="room")

The options are those of `memory_cluster`.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from snorky.gateway import Node, Service, ServiceRegistry
from snorky.gateway.protocol.codec import decode_json
from snorky.gateway.testing.cluster import MemoryCluster
from snorky.gateway.testing.directory import SharedDirectory
from tests.support.fakes.fake_wire import JSON, Client, until

__all__ = ["Resident", "Town", "town"]


class Resident(Client):
    """A client of a town. inbox: all messages that it got, in order. answers: those of them that are, by call id.

    envelopes: the same with their services.
    """

    def __init__(self, node: Node, registry: ServiceRegistry, identity: str | None) -> None:
        super().__init__(node, registry, JSON, identity)
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

    def call(self, service: str, command: str, /, **params: Any) -> int:
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

    async def ask(self, service: str, command: str, /, **params: Any) -> Any:
        """Send a request and wait for its answer."""
        return await self.answer(self.call(service, command, **params))


class Town(MemoryCluster):
    """Nodes n0, n1, ... with one registry each."""

    @property
    def cluster(self) -> SharedDirectory:
        """The state that the directories share."""
        return self.directory

    def client(self, number: int, identity: str | None = None) -> Resident:
        """Connect a client to a node; numbers wrap around."""
        at = number % len(self.nodes)
        return Resident(self.nodes[at], self.registries[at], identity)


@asynccontextmanager
async def town(count: int, services: Callable[[], Iterable[Service]], **options: Any) -> AsyncIterator[Town]:
    """Run nodes; closes all their clients at the end."""
    built = Town(count, services, **options)
    await built.start()
    try:
        yield built
    finally:
        await built.stop()
