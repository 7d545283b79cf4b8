"""The conformance table is complete: compared with docs/protocol.md and the services' own source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from snorky.services.auth import AuthBackend, AuthService
from snorky.services.chat import ChatService
from snorky.services.control import ControlBackend
from snorky.services.cursors import CursorsService
from snorky.services.datasync import DataSyncBackend, DataSyncService
from snorky.services.messaging import MessagingService
from snorky.services.pubsub import PubSubBackend, PubSubService
from snorky.services.rpc import RPCService
from tests.support.processes.tools import ROOT
from tests.support.scenarios import table
from tests.support.scenarios.conversation import blocks_of
from tests.support.scenarios.error_codes import CODES, ELSEWHERE

PAGE = ROOT / "docs" / "protocol.md"
SERVICES: dict[str, type[RPCService]] = {
    "pubsub": PubSubService,
    "pubsub_backend": PubSubBackend,
    "auth": AuthService,
    "auth_backend": AuthBackend,
    "chat": ChatService,
    "messaging": MessagingService,
    "cursors": CursorsService,
    "datasync": DataSyncService,
    "datasync_backend": DataSyncBackend,
    "control": ControlBackend,
}
NOT_SENT = {"1005", "1006"}  # a library's words, as the page says
ORDINARY = {
    "1000",
    "1001",
}  # a normal close by the client; a drain: tests/e2e/test_sockjs.py, tests/unit/http/websocket/test_drain.py


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def first_column(title: str) -> list[str]:
    """Return the words in the first cells of a section's tables, without their heads."""
    rows = re.findall(r"^\| ([^|\n]+) \|", section(title), re.MULTILINE)
    return [word for row in rows for word in re.findall(r"`?([a-z_]+|\d+)`?", row) if "`" in row or word.isdigit()]


def raised_texts(source: Path) -> Iterator[str]:
    """Return the literal texts of errors that a module of services raises."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            place = {"RPCError": 0, "LimitExceeded": 1}.get(node.func.id)
            if place is not None and isinstance(node.args[place], ast.Constant):
                yield str(node.args[place].value)


def test_every_text_of_the_table_has_its_code_and_every_code_its_text() -> None:
    assert table.texts() - CODES.keys() == set()
    # of a hundred, of five thousand: tests/unit/services/test_messaging.py, tests/unit/services/test_pubsub_rules.py
    limits = {"Too many names", "Too many members"}
    assert CODES.keys() - table.texts() == limits


def test_every_code_of_the_page_is_in_the_table_or_named_with_its_test() -> None:
    codes = set(first_column("Errors"))
    assert len(codes) > 40
    assert codes - {*CODES.values(), *ELSEWHERE} == set()
    assert {*CODES.values()} - codes == set(), "the page does not say them"


def test_every_close_code_and_status_is_in_the_table_or_named_with_its_test() -> None:
    codes = set(first_column("The end of a connection"))
    assert len(codes) > 15
    played = {str(code) for code in table.close_codes()}
    assert played <= codes
    assert codes - played - ELSEWHERE.keys() - NOT_SENT - ORDINARY == set()
    statuses = {int(word) for word in first_column("Backend over HTTP")}
    # tests/unit/http/backend/test_routes.py, test_backend_door.py, tests/cluster/test_workers.py
    assert statuses - table.statuses() == {408, 429, 503, 504}


def test_every_text_in_the_conversations_of_the_page_is_in_the_table() -> None:
    shown = {
        re.sub(r"\\(.)", r"\1", text)
        for block in blocks_of(PAGE, "wire")
        for text in re.findall(r'"type": "error",\s*"callId": [^,]+,\s*"message": "((?:[^"\\]|\\.)*)"', block.text)
    }
    assert len(shown) > 10
    assert shown - table.texts() == {"...", "Too many messages"}  # the last: tests/unit/sdk/test_registry.py


@pytest.mark.parametrize("source", sorted((ROOT / "services").rglob("*.py")), ids=lambda path: path.stem)
def test_every_text_that_a_service_raises_is_in_the_table(source: Path) -> None:
    assert {*raised_texts(source)} - CODES.keys() == set()


@pytest.mark.parametrize("name", SERVICES)
def test_every_command_is_granted_in_the_table(name: str) -> None:
    commands = {f"{name}.{command}" for command in SERVICES[name](name)._commands}
    assert commands - table.commands() == set()


def test_every_notification_is_in_the_table() -> None:
    assert table.notifications() == {
        ("message", "channel", "message"),
        ("message", "channel", "message", "offset", "position"),
        ("joined", "channel", "identity"),
        ("left", "channel", "identity"),
        ("unsubscribed", "channel", "code", "reason"),
        ("subscribed", "channel"),
        ("subscribed", "channel", "messages", "position", "recovered"),
        ("message", "body", "channel", "from", "timestamp"),
        ("presence", "channel", "from", "status", "timestamp"),
        ("read", "channel", "timestamp"),
        ("message", "body", "dest", "sender"),
        ("cursorAdded", "cursor"),
        ("cursorUpdated", "cursor"),
        ("cursorRemoved", "cursor"),
        ("delta", "delta"),
        ("unsubscribed", "channel", "code", "reason"),
    }


def test_cases_left_to_other_tests_have_tests() -> None:
    for code, (test, word) in ELSEWHERE.items():
        assert re.search(rf"\b{word}\b", (ROOT / test).read_text()), (code, test)
