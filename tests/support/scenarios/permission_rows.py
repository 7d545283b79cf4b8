"""The rows of the tables by the rule in docs/permissions.md: what each permits, and rules for a node to try it.

Each operation of each row has a channel of its own, PLACE.OWNER: Pusher's names cannot have a colon.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.support.scenarios.permission_tables import table

__all__ = ["CASES", "EVERY_OPERATION", "GRANTED", "OPERATIONS", "ROWS", "WHO", "Operation", "Row", "place", "settings"]

WHO: Final = ("anonymous", "another user", "owner", "token that permits it", "subscriber")
GRANTED: Final = {"anonymous, subscription token": None, "user, subscription token": "sam"}  # who: identity
EVERY_OPERATION: Final = ("subscribe", "publish", "history", "presence", "join", "register", "acquire")


@dataclass(frozen=True)
class Operation:
    """An operation of a service. list: the setting with its rules. command, channel: how a client does it."""

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


OPERATIONS: Final = (
    Operation("subscribe", "pubsub", "CHANNELS", "subscribe"),
    Operation("publish", "pubsub", "CHANNELS", "publish"),
    Operation("history", "pubsub", "CHANNELS", "history"),
    Operation("presence", "pubsub", "CHANNELS", "presence"),
    Operation("presence", "pubsub", "CHANNELS", "presenceStats"),
    Operation("join", "chat", "ROOMS", "join", needs_identity=True),
    Operation("join", "cursors", "DOCUMENTS", "join", "document", needs_identity=True),
    Operation("register", "messaging", "NAMES", "registerParticipant", "name", takes_grants=False),
    Operation("acquire", "datasync", "MODELS", "acquireSubscription", "token", takes_grants=False),
)


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


def _rows() -> Iterator[Row]:
    by_rule, by_grant = table("the rule says", *WHO), table("the rule says", *GRANTED)
    assert list(by_rule) == list(by_grant)
    for label, cells in by_rule.items():
        words = tuple(re.findall(r"`(\w+)`", label)) or None
        cells = [*cells, *by_grant[label]]
        assert set(cells) <= {"yes", "no"}, label
        has_placeholder = "owner" in label or "with a placeholder" in label
        yield Row(label, words, has_placeholder, label != "no rule matches", tuple(cell == "yes" for cell in cells))


ROWS: Final = tuple(_rows())
CASES: Final = tuple((row, operation) for row in ROWS for operation in OPERATIONS if row.applies(operation))


def place(row: Row, operation: Operation) -> str:
    """Return the part of a channel's name that the rule of a row and operation matches."""
    return f"{operation.command}-{ROWS.index(row)}"


def settings() -> dict[str, str]:
    """Give a node the rules of all rows and operations."""
    lists: dict[str, list[Any]] = {}
    for row, operation in CASES:
        if not row.has_rule:
            continue
        rule: dict[str, Any] = {"match": f"{place(row, operation)}.{'{identity}' if row.has_placeholder else '*'}"}
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
