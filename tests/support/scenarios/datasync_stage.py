"""Nodes with DataSync in memory, and their clients."""

from typing import Any

from snorky.gateway import ServiceRegistry
from snorky.services.datasync import DataSyncBackend, DataSyncService, Delta
from tests.support.fakes.memory_cluster import Resident, Town
from tests.support.scenarios.dealers import AllTasks, Players, PlayersWithColor, TasksOfList

DEALERS = (AllTasks, TasksOfList, Players, PlayersWithColor)


class Stage:
    """A town with a backend on every node."""

    def __init__(self, nodes: Town) -> None:
        self.town = nodes
        self._private = [ServiceRegistry([DataSyncBackend()]) for _ in nodes.nodes]
        for node, registry in zip(nodes.nodes, self._private, strict=True):
            node.attach(registry)

    def service(self, number: int) -> DataSyncService:
        service = self.town.registries[number]["datasync"]
        assert isinstance(service, DataSyncService)
        return service

    async def ask(self, number: int, command: str, **params: Any) -> Any:
        backend = Resident(self.town.nodes[number], self._private[number], None)
        try:
            return await backend.ask("datasync_backend", command, **params)
        finally:
            backend.leave()

    async def authorize(self, number: int, *items: Any) -> str:
        token = await self.ask(number, "authorizeSubscription", items=list(items))
        assert isinstance(token, str) and len(token) == 32, token
        return token

    async def publish(self, number: int, *deltas: Delta) -> None:
        assert await self.ask(number, "publishDeltas", deltas=[delta.value for delta in deltas]) is None

    async def acquire(self, number: int, token: str) -> Resident:
        client = self.town.client(number)
        assert await client.ask("datasync", "acquireSubscription", token=token) is None
        return client


def task(number: int, of: str = "home") -> Delta:
    return Delta("insert", "Task", new={"n": number, "list": of})


def numbers(client: Resident) -> list[int]:
    return [each["delta"]["data"]["n"] for each in client.notifications]


ALL = {"dealer": "AllTasks", "query": None}
