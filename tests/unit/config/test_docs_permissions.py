"""docs/permissions.md: its settings start a node, and permit what the page says. tests/e2e has its table."""

import json
import re
from pathlib import Path
from typing import Any

from snorky.gateway.config.rules.access_words import WORD_LIST
from snorky.gateway.config.settings import load
from snorky.gateway.connection.connection import Connection
from snorky.gateway.permissions.capabilities import permits
from snorky.gateway.sdk.loading import load_registries
from snorky.gateway.testing.transport import JSON, FakeTransport
from tests.support.processes.tools import ROOT

PAGE = (ROOT / "docs" / "permissions.md").read_text()
SECRET = "0f5a3b8c17d2e90b4c6a8d3e5f7192b4"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_settings_of_the_page_permit_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "snorky.toml"
    path.write_text(block("toml permissions").replace("made by: openssl rand -hex 32", SECRET))
    settings = load(path, {})
    assert settings.problems(insecure=False) == []
    public, _ = load_registries(settings)
    service = public["pubsub"]
    service.set_authenticating(is_authenticating=settings.auth.is_configured)
    ann = Connection(FakeTransport(), JSON, node_id="n0", serial=1)
    ann.identity, ann.claims = "ann", {"shops": [7]}

    def may(operation: str, channel: str) -> bool:
        access: Any = service.access
        return bool(access.allows(operation, access.rules.find(channel), channel, ann))

    assert may("subscribe", "user:ann") and may("history", "user:ann") and not may("publish", "user:ann")
    assert may("subscribe", "shop:7:orders") and not may("subscribe", "shop:8:orders")
    assert may("subscribe", "chat:a") and not may("publish", "chat:a"), "she is not subscribed yet"
    assert not may("subscribe", "user:bob") and not may("subscribe", "anything else")


def test_claims_of_the_page_permit_what_it_says() -> None:
    claims = json.loads(block("json claims"))
    assert permits(claims, "pubsub", "history", "orders:7") and not permits(claims, "pubsub", "publish", "orders:7")
    assert permits(claims, "chat", "join", "room:1") and not permits(claims, "pubsub", "join", "room:1")


def test_page_has_every_word() -> None:
    table = PAGE[PAGE.index("| word | who |") : PAGE.index("Defaults, where a rule has no word")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == WORD_LIST.split(", ")
