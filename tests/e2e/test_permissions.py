"""The table of docs/permissions.md: each word and client, for each operation and transport, on a node process."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.transports import TransportStage
from tests.support.scenarios.node_stage import node_stage

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "permissions.md").read_text()
WHO = ["anonymous", "another user", "owner", "token that permits it", "subscriber"]
TRANSPORTS = ["json", "msgpack", "sockjs-websocket", "xhr-streaming"]


@dataclass(frozen=True)
class Operation:
    """An operation of a service. list: the setting with its rules. command, params: how a client does it."""

    name: str
    service: str
    list: str
    command: str
    channel: str = "channel"
    needs_identity: bool = False


OPERATIONS = [
    Operation("subscribe", "pubsub", "CHANNELS", "subscribe"),
    Operation("publish", "pubsub", "CHANNELS", "publish"),
    Operation("history", "pubsub", "CHANNELS", "history"),
    Operation("presence", "pubsub", "CHANNELS", "presence"),
    Operation("presence", "pubsub", "CHANNELS", "presenceStats"),
    Operation("join", "chat", "ROOMS", "join", needs_identity=True),
    Operation("join", "cursors", "DOCUMENTS", "join", "document", needs_identity=True),
    Operation("register", "messaging", "NAMES", "registerParticipant", "name"),
]


@dataclass(frozen=True)
class Row:
    """A row of the table. words: what the rule says; None: nothing. allowed: by WHO."""

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
        return operation.name in ("publish", "history", "presence") or self.words != ("subscriber",)


def rows() -> Iterator[Row]:
    lines = PAGE[PAGE.index("| the rule says |") :].splitlines()
    assert [each.strip() for each in lines[0].split("|")[2:-1]] == WHO
    for line in lines[2:]:
        label, *cells = [each.strip() for each in line.split("|")[1:-1]]
        words = tuple(re.findall(r"`(\w+)`", label)) or None
        assert set(cells) <= {"yes", "no"}, line
        has_placeholder = "owner" in label or "with a placeholder" in label
        has_rule = label != "no rule matches"
        yield Row(label, words, has_placeholder, has_rule, tuple(each == "yes" for each in cells))


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
                rule.setdefault("allow_subscribe", "authenticated")
        lists.setdefault(f"SNORKY_SERVICES__{operation.service}__{operation.list}".upper(), []).append(rule)
    closed = {f"SNORKY_SERVICES__{each.service.upper()}__UNMATCHED": "closed" for each in OPERATIONS}
    return {**closed, **{name: json.dumps(each) for name, each in lists.items()}}


async def ask(actor: Any, service: str, command: str, **params: Any) -> Any:
    call_id = f"{service} {command} {json.dumps(params)}"
    await actor.send({"service": service, "message": {"command": command, "params": params, "callId": call_id}})

    def answers() -> list[Any]:
        return [each["message"] for each in actor.inbox if each["message"].get("callId") == call_id]

    await actor.until(answers)
    return answers()[-1]


async def client(stage: TransportStage, who: str) -> Any:
    """Connect a client of the table. The owner of each channel is ann."""
    if who == "anonymous":
        return await stage.client(0, None)
    if who == "token that permits it":
        every = {"*:ann": ["subscribe", "publish", "history", "presence", "join", "register"]}
        services = {service: every for service in ("chat", "cursors", "messaging")}
        return await stage.client(0, "cap", channels=every, services=services)
    return await stage.client(0, {"another user": "bob", "owner": "ann", "subscriber": "sue"}[who])


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_cell_of_the_table_is_true(transport: str, tmp_path: Path) -> None:
    found: dict[tuple[Row, Operation, str], bool] = {}
    async with node_stage(tmp_path, 1, env=settings()) as nodes:
        stage = TransportStage(nodes, [transport], None)
        for who in WHO:
            actor = await client(stage, who)
            for row, operation in CASES:
                channel = f"{place(row, operation)}:ann"
                if who == "subscriber" and operation.name in ("publish", "history", "presence"):
                    await ask(actor, "pubsub", "subscribe", channel=channel)
                message = {"message": 1} if operation.command == "publish" else {}
                answer = await ask(
                    actor, operation.service, operation.command, **{operation.channel: channel}, **message
                )
                refusals = ("not_authorized", "name_not_allowed")
                if operation.needs_identity and who == "anonymous":
                    refusals = ("not_authenticated",)
                assert answer["type"] == "response" or answer["code"] in refusals, (row, operation, answer)
                found[row, operation, who] = answer["type"] == "response"
                if operation.name == "register" and answer["type"] == "response":
                    await ask(actor, "messaging", "unregisterParticipant", name=channel)
            await actor.close()
    wrong = []
    for row, operation in CASES:
        for who, allowed in zip(WHO, row.allowed, strict=True):
            expected = allowed and not (operation.needs_identity and who == "anonymous")
            if found[row, operation, who] is not expected:
                wrong.append((row.label, operation.command, who, "expected", expected))
    assert not wrong, wrong
    assert len(found) == len(CASES) * len(WHO) >= 300
