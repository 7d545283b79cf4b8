"""Conformance: every command, text and notification of PROTOCOL, with all clients on one node and spread over three.

The same table, first with nodes in this process, then with node processes and a real Redis.
"""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway import ServiceRegistry
from services.chat import ChatService
from services.cursors import CursorsService
from services.messaging import MessagingService
from services.pubsub import PubSubBackend, PubSubService
from tests.support.clients import until
from tests.support.conformance import Scenario, Stage, perform
from tests.support.guarded import GuardedChat, GuardedCursors, GuardedMessaging, GuardedPubSub
from tests.support.node_stage import node_stage
from tests.support.protocol_table import SCENARIOS
from tests.support.town import Resident, Town, town

NODES = (1, 3)


# -- in this process --------------------------------------------------------------------------------------------------


class LocalActor:
    """A resident of a town."""

    def __init__(self, resident: Resident) -> None:
        self._resident = resident

    @property
    def inbox(self) -> list[Any]:
        return self._resident.envelopes

    @property
    def close_code(self) -> int | None:
        return self._resident.wire.closes[0][0] if self._resident.wire.closes else None

    async def send(self, envelope: Any) -> None:
        self._resident.send(envelope["service"], envelope["message"])

    async def until(self, claim: Callable[[], object]) -> None:
        await until(claim)

    async def close(self) -> None:
        self._resident.leave()


class LocalStage:
    """Nodes in this process."""

    def __init__(self, nodes: Town) -> None:
        self._nodes = nodes
        self._private = [ServiceRegistry([PubSubBackend()]) for _ in nodes.nodes]
        for node, registry in zip(nodes.nodes, self._private, strict=True):
            node.attach(registry)

    async def client(self, number: int, identity: str | None) -> LocalActor:
        return LocalActor(self._nodes.client(number, identity))

    async def backend(self, number: int, envelope: Any) -> Any:
        at = number % len(self._private)
        passing = Resident(self._nodes.nodes[at], self._private[at], None)
        passing.send(envelope["service"], envelope["message"])
        await until(lambda: passing.envelopes)
        passing.leave()
        return passing.envelopes[0]


@pytest.fixture(params=NODES, ids=["one node", "three nodes"])
async def local(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    def services() -> list[Any]:
        return [
            PubSubService(),
            ChatService(),
            MessagingService(),
            CursorsService(),
            GuardedPubSub("guarded_pubsub"),
            GuardedChat("guarded_chat"),
            GuardedMessaging("guarded_messaging"),
            GuardedCursors("guarded_cursors"),
        ]

    async with town(request.param, services, late=3) as nodes:
        yield LocalStage(nodes)


@pytest.mark.parametrize("played", SCENARIOS, ids=lambda each: each.name)
async def test_protocol_holds_in_one_process(local: Stage, played: Scenario) -> None:
    await perform(local, played)


# -- node processes and a real Redis ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", NODES, ids=["one node", "three nodes"])
async def test_protocol_holds_over_node_processes(count: int, tmp_path: Path) -> None:
    """One test for all scenarios, because the nodes take longer to start than the scenarios to play."""
    async with node_stage(tmp_path, count) as stage:
        for played in SCENARIOS:
            try:
                await perform(stage, played)
                await stage.is_clean()
            except AssertionError as error:
                raise AssertionError(
                    f"{played.name}: {error}\n" + "\n".join(node.log for node in stage.nodes)
                ) from None
