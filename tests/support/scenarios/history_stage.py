"""A node whose channels have a history in memory, and what its clients received."""

from typing import Any

from snorky.gateway import (
    PAYLOAD,
    History,
    Position,
    Recovery,
    Service,
    Topics,
)
from tests.support.fakes.memory_cluster import Resident, Town

HOUR = History(3600.0, 1000)


KEY = "notes:c"


class Notes(Service):
    """A service that only exposes its topics."""

    def __init__(self) -> None:
        super().__init__("notes")

    def on_message(self, connection: Any, message: Any) -> None: ...

    def notification(self, channel: Any) -> Any:
        return PAYLOAD if channel == "bare" else {"type": "message", "channel": channel, "message": PAYLOAD}


class Stage:
    """Three nodes with one service."""

    def __init__(self, nodes: Town) -> None:
        self.town = nodes

    def topics(self, number: int) -> Topics:
        return self.town.registries[number]["notes"].topics

    async def publish(self, *values: Any, by: int = 2, history: History = HOUR, channel: Any = "c") -> Position:
        for value in values:
            position = await self.topics(by).publish(channel, value, history=history)
        return position

    async def plain(self, number: int, channel: Any = "c", *, history: History | None = HOUR) -> Resident:
        client = self.town.client(number)
        await self.topics(number).subscribe(client.connection, channel, history=history)
        return client

    async def back(self, number: int, since: Position | None = None, channel: Any = "c") -> tuple[Resident, Recovery]:
        client = self.town.client(number)
        return client, await self.topics(number).recover(client.connection, channel, HOUR, since)

    def deafen(self, number: int) -> None:
        """Drop publications to a node from now on."""
        self.town.brokers[number].is_lossy = True

    def mend(self, number: int, *, is_noticed: bool = True) -> None:
        """Drop no more."""
        self.town.brokers[number].is_lossy = False
        if is_noticed:
            self.town.nodes[number].on_interrupted()

    def sample(self, number: int, name: str, **labels: str) -> float:
        return self.town.nodes[number].metrics.registry.get_sample_value(name, labels) or 0.0


def payloads(recovery: Recovery) -> list[bytes]:
    return [publication.payload for publication in recovery.publications]


def heard(client: Resident) -> list[Any]:
    """Payloads that it was notified of, and "gap"."""
    return ["gap" if each["type"] == "gap" else each["message"] for each in client.inbox]
