"""Conformance: every command, text and notification of PROTOCOL, with all clients on one node and spread over three.

The same table, first with nodes in this process, then with node processes and a real Redis; by each transport, and by
all of them at once: WebSockets with JSON and MessagePack, SockJS by WebSocket, streaming and polling.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.transports import TRANSPORTS, TransportStage
from tests.support.scenarios.conformance import DEADLINE_S, Actor, Scenario, Stage, perform
from tests.support.scenarios.history_table import RULES
from tests.support.scenarios.local_stage import API_KEY, local_stage
from tests.support.scenarios.node_stage import NodeStage, node_stage
from tests.support.scenarios.table import DEALERS, TABLE

NODES = (1, 3)
ENV = {
    "SNORKY_SERVICES__BROKEN__CLASS": "tests.support.scenarios.guarded:Broken",
    "SNORKY_AUTH__LEEWAY_S": "0",
    "SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService",
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
    "SNORKY_SERVICES__DATASYNC__CLASS": "snorky.services.datasync:DataSyncService",
    "SNORKY_SERVICES__DATASYNC__DEALERS": json.dumps(DEALERS),
}


# -- in this process --------------------------------------------------------------------------------------------------


ENCODINGS = {1: ("json", "msgpack"), 3: ("msgpack", "json")}  # of clients, in turn
each_count = pytest.mark.parametrize("count", NODES, ids=["one node", "three nodes"])


@each_count
@pytest.mark.parametrize("played", TABLE, ids=lambda each: each.name)
async def test_protocol_holds_in_one_process(played: Scenario, count: int) -> None:
    async with local_stage(count, played.house, ENCODINGS[count]) as stage:
        await perform(stage, played)


@each_count
@pytest.mark.parametrize("kind", ["chat", "pubsub"])
async def test_all_members_receive_all_messages_in_the_same_order(kind: str, count: int) -> None:
    async with local_stage(count, "open", ENCODINGS[count]) as stage:
        await _hear_in_one_order(stage, kind)


# -- node processes and a real Redis ----------------------------------------------------------------------------------


HOUSE_ENV = {
    "open": {"SNORKY_PRIVATE__API_KEY": API_KEY},
    "required": {"SNORKY_AUTH__REQUIRED": "true", "SNORKY_AUTH__TIMEOUT_S": "2"},
}


async def play(stage: NodeStage, house: str, transports: Sequence[str]) -> None:
    """Run all scenarios of a house: those that are apart at the same time, the others one by one."""
    there = TransportStage(stage, transports, API_KEY if house == "open" else None)
    apart = [each for each in TABLE if each.house == house and each.is_apart]
    groups = [apart, *([each] for each in TABLE if each.house == house and not each.is_apart)]
    for group in groups:
        name = ", ".join(each.name for each in group)
        try:
            outcomes = await asyncio.gather(*(perform(there, each) for each in group), return_exceptions=True)
            for fault in filter(None, outcomes):
                raise fault
            await stage.is_clean()
        except AssertionError as error:
            logs = "\n".join(node.log for node in stage.nodes)
            raise AssertionError(f"{name} by {transports}: {error}\n{logs}") from error


@pytest.mark.needs("redis-server")
@each_count
async def test_protocol_holds_over_node_processes(count: int, tmp_path: Path) -> None:
    """One test for all scenarios and transports, because the nodes take longer to start than the scenarios to run."""
    alone = TRANSPORTS if count > 1 else TRANSPORTS[:1]  # on one node, running all at once is as thorough
    async with node_stage(tmp_path, count, env=ENV | HOUSE_ENV["open"]) as stage:
        for transports in (*([each] for each in alone), TRANSPORTS):
            await play(stage, "open", transports)


@pytest.mark.needs("redis-server")
@each_count
async def test_required_identity_holds_over_node_processes(count: int, tmp_path: Path) -> None:
    async with node_stage(tmp_path, count, env=ENV | HOUSE_ENV["required"]) as stage:
        await play(stage, "required", TRANSPORTS)


@pytest.mark.needs("redis-server")
@each_count
async def test_order_is_one_over_node_processes(count: int, tmp_path: Path) -> None:
    async with node_stage(tmp_path, count, env=ENV) as stage:
        for kind in ("chat", "pubsub"):
            await _hear_in_one_order(TransportStage(stage, TRANSPORTS, None), kind)
        await stage.is_clean()


async def _hear_in_one_order(stage: Stage, kind: str) -> None:
    """Six clients on all nodes send at once: all receive the same, and each sender's messages in order."""
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
    await asyncio.gather(*(client.dismiss() for client in clients))


def _is_answered(client: Actor, service: str) -> bool:
    return any(each["service"] == service and "callId" in each["message"] for each in client.inbox)


def _has_heard(client: Actor, told: Callable[[Actor], list[Any]], count: int) -> bool:
    return len(told(client)) >= count
