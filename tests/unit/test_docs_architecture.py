"""docs/architecture.md lists every file, on the same layer as the layer test."""

import re
from pathlib import Path

from tests.unit.test_layers import FLOORS, place_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def files() -> dict[str, str]:
    """Return every module with its layer, as the page writes it; the packages' own `__init__` only if it has names."""
    found = [
        path.relative_to(ROOT).as_posix() for name in ("gateway", "services") for path in (ROOT / name).rglob("*.py")
    ]
    kept = [path for path in found if path == "gateway/__init__.py" or not path.endswith("/__init__.py")]
    return {path: str(FLOORS[place_of(path)]) if path.startswith("gateway/") else "above" for path in kept}


def test_every_file_is_in_the_table_on_its_layer() -> None:
    rows = re.findall(r"^\| `((?:gateway|services)/\S+\.py)` \| (\w+) \| .+ \|$", PAGE, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    assert dict(rows) == files()


def test_table_lists_layers_from_the_lowest() -> None:
    floors = [int(floor) for floor in re.findall(r"^\| `gateway/\S+` \| (\d+) \|", PAGE, re.MULTILINE)]
    assert floors == sorted(floors)


def test_every_file_that_the_text_names_is_there() -> None:
    named = set(re.findall(r"`((?:gateway|services|redis|http|tests)/[\w/]+\.py)`", PAGE))
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "gateway" / name).exists()]
    assert named and missing == []
