"""The tables of docs/permissions.md by the rule: each word and client, for each operation and transport, on a node."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.transports import TransportStage
from tests.support.scenarios.node_stage import node_stage
from tests.support.scenarios.permission_tables import BACKEND_SERVICES, TRANSPORTS, ask, by_key, table
from tests.support.scenarios.tokens import hmac_token

WHO = ["anonymous", "another user", "owner", "token that permits it", "subscriber"]
GRANTED = {"anonymous, subscription token": None, "user, subscription token": "sam"}  # who: identity
EVERY_OPERATION = ["subscribe", "publish", "history", "presence", "join", "register", "acquire"]
REFUSALS = ("not_authorized", "name_not_allowed", "not_authenticated")


@dataclass(frozen=True)
class Operation:
    """An operation of a service. list: the setting with its rules. command, params: how a client does it."""

    name: str
    service: str
    list: str
    command: str
    channel: str = "channel"
    needs_identity: bool = False
    takes_grants: bool = True  # a subscription token can permit it

    @property
    def of_subscribers(self) -> bool:
        """Whether a subscription, and its token, can permit it."""
        return self.name in ("publish", "history", "presence")


OPERATIONS = [
    Operation("subscribe", "pubsub", "CHANNELS", "subscribe"),
    Operation("publish", "pubsub", "CHANNELS", "publish"),
    Operation("history", "pubsub", "CHANNELS", "history"),
    Operation("presence", "pubsub", "CHANNELS", "presence"),
    Operation("presence", "pubsub", "CHANNELS", "presenceStats"),
    Operation("join", "chat", "ROOMS", "join", needs_identity=True),
    Operation("join", "cursors", "DOCUMENTS", "join", "document", needs_identity=True),
    Operation("register", "messaging", "NAMES", "registerParticipant", "name", takes_grants=False),
    Operation("acquire", "datasync", "MODELS", "acquireSubscription", "token", takes_grants=False),
]


@dataclass(frozen=True)
class Row:
    """A row of the tables. words: what the rule says; None: nothing. allowed: by WHO, then by GRANTED."""

    label: str
    words: tuple[str, ...] | None
    has_placeholder: bool
    has_rule: bool
    allowed: tuple[bool, ...]

    def applies(self, operation: Operation) -> bool:
        """Whether the operation can have such a rule."""
        if "to publish" in self.label:
            return operation.name == "publish"
        if "to subscribe" in self.label:
            return operation.name != "publish"
        return operation.of_subscribers or self.words != ("subscriber",)

    def permits(self, operation: Operation, who: str) -> bool:
        """Whether the tables permit it."""
        return self.allowed[[*WHO, *GRANTED].index(who)] and not (
            operation.needs_identity and who.startswith("anonymous")
        )


def rows() -> Iterator[Row]:
    by_rule, by_grant = table("the rule says", *WHO), table("the rule says", *GRANTED)
    assert list(by_rule) == list(by_grant)
    for label, cells in by_rule.items():
        words = tuple(re.findall(r"`(\w+)`", label)) or None
        cells = [*cells, *by_grant[label]]
        assert set(cells) <= {"yes", "no"}, label
        has_placeholder = "owner" in label or "with a placeholder" in label
        yield Row(label, words, has_placeholder, label != "no rule matches", tuple(cell == "yes" for cell in cells))


ROWS = list(rows())
CASES = [(row, operation) for row in ROWS for operation in OPERATIONS if row.applies(operation)]


def place(row: Row, operation: Operation) -> str:
    return f"{operation.command}-{ROWS.index(row)}"


def settings() -> dict[str, str]:
    """Give a node the rules of all rows and operations."""
    lists: dict[str, list[Any]] = {}
    for row, operation in CASES:
        if not row.has_rule:
            continue
        rule: dict[str, Any] = {"match": f"{place(row, operation)}:{'{identity}' if row.has_placeholder else '*'}"}
        if row.words is not None:
            rule[f"allow_{operation.name}"] = row.words
        if operation.service == "pubsub":
            rule |= {"history": 10, "presence": True}
            if "to subscribe" not in row.label:
                rule.setdefault("allow_subscribe", ["authenticated", "token"])
        lists.setdefault(f"SNORKY_SERVICES__{operation.service}__{operation.list}".upper(), []).append(rule)
    dealers = [f"tests.support.scenarios.dealers:Row{number}" for number in range(len(ROWS))]
    return {
        "SNORKY_SERVICES__DATASYNC__CLASS": "snorky.services.datasync:DataSyncService",
        "SNORKY_SERVICES__DATASYNC__DEALERS": json.dumps(dealers),
        **{f"SNORKY_SERVICES__{each.service.upper()}__UNMATCHED": "closed" for each in OPERATIONS},
        **{name: json.dumps(each) for name, each in lists.items()},
    }


async def client(stage: TransportStage, who: str) -> Any:
    """Connect a client of the tables. The owner of each channel is ann."""
    if who in GRANTED:
        return await stage.client(0, GRANTED[who])
    if who == "anonymous":
        return await stage.client(0, None)
    if who == "token that permits it":
        every = {"*:ann": EVERY_OPERATION}
        services = {service: every for service in ("chat", "cursors", "messaging", "datasync")}
        return await stage.client(0, "cap", channels=every, services=services)
    return await stage.client(0, {"another user": "bob", "owner": "ann", "subscriber": "sue"}[who])


async def is_permitted(stage: TransportStage, actor: Any, who: str, row: Row, operation: Operation, owner: str) -> bool:
    """Do the operation on a channel that belongs to an identity; return whether it was permitted."""
    channel = f"{place(row, operation)}:{owner}"
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


@pytest.mark.parametrize("transport", TRANSPORTS)
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
