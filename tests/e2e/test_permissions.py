"""The tables of docs/permissions.md by the rule: each word and client, for each operation and transport, on a node."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.any_protocol import CENTRIFUGE
from tests.support.clients.transports import TransportStage
from tests.support.scenarios.node_stage import node_stage
from tests.support.scenarios.permission_rows import (
    CASES,
    EVERY_OPERATION,
    GRANTED,
    ROWS,
    WHO,
    Operation,
    Row,
    place,
    settings,
)
from tests.support.scenarios.permission_tables import BACKEND_SERVICES, TRANSPORTS, ask, by_key
from tests.support.scenarios.tokens import hmac_token

REFUSALS = ("not_authorized", "name_not_allowed", "not_authenticated")


async def client(stage: TransportStage, who: str) -> Any:
    """Connect a client of the tables. The owner of each channel is ann."""
    if who in GRANTED:
        return await stage.client(0, GRANTED[who])
    if who == "anonymous":
        return await stage.client(0, None)
    if who == "token that permits it":
        every = {"*.ann": EVERY_OPERATION}
        services = {service: every for service in ("chat", "cursors", "messaging", "datasync")}
        return await stage.client(0, "cap", channels=every, services=services)
    return await stage.client(0, {"another user": "bob", "owner": "ann", "subscriber": "sue"}[who])


async def is_permitted(stage: TransportStage, actor: Any, who: str, row: Row, operation: Operation, owner: str) -> bool:
    """Do the operation on a channel that belongs to an identity; return whether it was permitted."""
    channel = f"{place(row, operation)}.{owner}"
    params: dict[str, Any] = {operation.channel: channel}
    if operation.name == "acquire":
        items = [{"dealer": f"Row{ROWS.index(row)}", "query": None}]
        call = {"command": "authorizeSubscription", "params": {"items": items}}
        answer = await stage.backend(0, {"service": "datasync_backend", "message": call})
        params["token"] = answer["message"]["data"]
    if operation.command == "publish":
        params["message"] = 1
    grant = {}
    if who in GRANTED:
        service, identity = operation.service, GRANTED[who]
        grant["token"] = hmac_token(identity, channel=channel, service=service, ops=[operation.name, "subscribe"])
    if operation.of_subscribers:
        if grant or who == "subscriber":
            await ask(actor, "pubsub", "subscribe", channel=channel, **grant)
    else:
        params |= grant
    answer = await ask(actor, operation.service, operation.command, **params)
    assert answer["type"] == "response" or answer["code"] in REFUSALS, (who, row, operation, answer)
    if operation.name == "register" and answer["type"] == "response":
        await ask(actor, "messaging", "unregisterParticipant", name=channel)
    return bool(answer["type"] == "response")


@pytest.mark.parametrize("transport", [*TRANSPORTS, *CENTRIFUGE])
async def test_every_cell_of_the_table_is_true(transport: str, tmp_path: Path) -> None:
    tried, wrong = 0, []
    private = dict(zip(BACKEND_SERVICES, by_key()["from a client, on the public port"], strict=True))
    async with node_stage(tmp_path, 1, env=settings()) as nodes:
        stage = TransportStage(nodes, [transport], None)
        for who in [*WHO, *GRANTED]:
            actor = await client(stage, who)
            for service, cell in private.items():
                answer = await ask(actor, service, "nodes")
                assert f"`{answer['code']}`" == cell, (who, service, answer)
            for row, operation in CASES:
                if who in GRANTED and not operation.takes_grants:
                    continue
                expected = {"ann": row.permits(operation, who)}
                if who == "another user" and row.has_placeholder and operation.name != "acquire":
                    expected["bob"] = row.permits(operation, "owner")  # an owner too, of another channel
                for owner, permitted in expected.items():
                    tried += 1
                    if await is_permitted(stage, actor, who, row, operation, owner) is not permitted:
                        wrong.append((row.label, operation.command, who, owner, "expected", permitted))
            await actor.close()
    assert not wrong, wrong
    assert tried >= 500
