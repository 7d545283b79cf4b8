"""Conformance: every command, text and notification of PROTOCOL, with all clients on one node and spread over three.

The same table, first with nodes in this process, then with node processes and a real Redis.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway import ServiceRegistry
from services.chat import ChatService
from services.cursors import CursorsService
from services.datasync import DataSyncBackend, DataSyncService
from services.messaging import MessagingService
from services.pubsub import PubSubBackend, PubSubService
from tests.support.clients import until
from tests.support.conformance import DEADLINE_S, Actor, Scenario, Stage, perform
from tests.support.datasync_table import DATASYNC_SCENARIOS
from tests.support.guarded import GuardedChat, GuardedCursors, GuardedMessaging, GuardedPubSub
from tests.support.node_stage import node_stage
from tests.support.protocol_table import SCENARIOS as OTHER_SCENARIOS
from tests.support.town import Resident, Town, town

NODES = (1, 3)
SCENARIOS = OTHER_SCENARIOS + DATASYNC_SCENARIOS
DEALERS = ("tests.support.dealers:PlayersWithColor", "tests.support.dealers:Players")
DATASYNC = {
    "SNORKY_SERVICES__DATASYNC__CLASS": "services.datasync:DataSyncService",
    "SNORKY_SERVICES__DATASYNC__DEALERS": json.dumps(DEALERS),
}


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
        self._private = [ServiceRegistry([PubSubBackend(), DataSyncBackend()]) for _ in nodes.nodes]
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
            DataSyncService(dealers=DEALERS),
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


@pytest.mark.parametrize("kind", ["chat", "pubsub"])
async def test_all_members_hear_all_senders_in_one_order(local: Stage, kind: str) -> None:
    await _hear_in_one_order(local, kind)


# -- node processes and a real Redis ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", NODES, ids=["one node", "three nodes"])
async def test_protocol_holds_over_node_processes(count: int, tmp_path: Path) -> None:
    """One test for all scenarios, because the nodes take longer to start than the scenarios to play."""
    async with node_stage(tmp_path, count, env=DATASYNC) as stage:
        for played in SCENARIOS:
            try:
                await perform(stage, played)
                await stage.is_clean()
            except AssertionError as error:
                raise AssertionError(
                    f"{played.name}: {error}\n" + "\n".join(node.log for node in stage.nodes)
                ) from None


@pytest.mark.parametrize("count", NODES, ids=["one node", "three nodes"])
async def test_order_is_one_over_node_processes(count: int, tmp_path: Path) -> None:
    async with node_stage(tmp_path, count) as stage:
        for kind in ("chat", "pubsub"):
            await _hear_in_one_order(stage, kind)
        await stage.is_clean()


async def _hear_in_one_order(stage: Stage, kind: str) -> None:
    """Let six clients on all nodes talk at once: everybody hears the same, and each sender in its own order."""
    enter, speak, body = ("join", "send", "body") if kind == "chat" else ("subscribe", "publish", "message")
    clients = [await stage.client(number, f"i{number}") for number in range(6)]

    def told(client: Actor) -> list[Any]:
        messages = [each["message"] for each in client.inbox if each["service"] == kind]
        return [each[body] for each in messages if each["type"] == "message"]

    async def call(client: Actor, command: str, **params: Any) -> None:
        message = {"command": command, "params": {"channel": "order", **params}, "callId": f"{command} {params}"}
        await client.send({"service": kind, "message": message})

    for client in clients:
        await call(client, enter)
        await client.until(partial(_is_answered, client, kind))
    said = [[number, turn] for number in range(6) for turn in range(30)]
    for number, turn in sorted(said, key=lambda each: each[1]):
        await call(clients[number], speak, **{body: [number, turn]})
    async with asyncio.timeout(DEADLINE_S):
        for client in clients:
            await client.until(partial(_has_heard, client, told, len(said)))
    heard = [told(client) for client in clients]
    assert all(each == heard[0] for each in heard)
    assert sorted(heard[0]) == said, "none is lost, none twice"
    for number in range(6):
        assert [turn for sender, turn in heard[0] if sender == number] == list(range(30))
    for client in clients:
        await client.close()


def _is_answered(client: Actor, service: str) -> bool:
    return any(each["service"] == service and "callId" in each["message"] for each in client.inbox)


def _has_heard(client: Actor, told: Callable[[Actor], list[Any]], count: int) -> bool:
    return len(told(client)) >= count
