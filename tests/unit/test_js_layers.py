"""Each folder of clients/js/src imports only itself and the folders that this table lists. Type imports count too."""

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "clients" / "js" / "src"
ALONE = ("error.js", "emitter.js", "clock.js")  # import nothing, so every folder may import them
ROOMS = {
    "wire": (),
    "channels": ("wire",),
    "session": ("wire", "channels"),
    ".": ("wire", "channels", "session"),
}
TYPES = {("channels/topic.js", "session/grant.js"), ("session/link.js", "options.js")}  # types of options


def violations(path: str, source: str) -> list[str]:
    """Say which imports of a file the table forbids."""
    folder = Path(path).parent
    found = []
    for name in re.findall(r'(?:from |import\()"(\.[^"]+\.js)"', source):
        target = (SOURCES / folder / name).resolve().relative_to(SOURCES)
        room = str(target.parent)
        is_allowed = room in (str(folder), *ROOMS[str(folder)]) or str(target) in ALONE or (path, str(target)) in TYPES
        if not is_allowed or path in ALONE:
            found.append(f"{path} must not import {target}")
    return found


@pytest.mark.parametrize("path", sorted(each.relative_to(SOURCES).as_posix() for each in SOURCES.rglob("*.js")))
def test_folders_import_only_what_the_table_lists(path: str) -> None:
    assert violations(path, (SOURCES / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("wire/json.js", 'import { Topic } from "../channels/topic.js";'),
        ("channels/feed.js", 'import { Session } from "../session/session.js";'),
        ("session/link.js", '/** @typedef {import("../client.js").Client} Client */'),
        ("error.js", 'import { json } from "./wire/json.js";'),
    ],
)
def test_a_forbidden_import_is_found(path: str, line: str) -> None:
    assert len(violations(path, line)) == 1
