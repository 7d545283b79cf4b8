"""docs/architecture.md names every room of the layer test, and only files that exist."""

import re
from pathlib import Path

from tests.unit.test_layers import LEAF, ROOMS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_room_is_in_the_table() -> None:
    table = PAGE[PAGE.index("| room |") : PAGE.index("In `redis/`:")]
    named = {name.removesuffix("/").removesuffix(".py") for name in re.findall(r"`([a-z_]+(?:/|\.py))`", table)}
    assert named == set(ROOMS) - {"leaf"} | {"cli"} | set(LEAF) - {"_version"}


def test_every_file_that_the_text_names_exists() -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)*[\w]+\.(?:py|lua))`", PAGE))
    roots = (ROOT, ROOT / "gateway", ROOT / "gateway" / "redis")
    assert named and [name for name in named if not any((root / name).exists() for root in roots)] == []
