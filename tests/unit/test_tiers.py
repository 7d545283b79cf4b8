"""The table of the first tier names what exists."""

from pathlib import Path

import pytest

from tests.support.processes.tools import ROOT
from tests.tiers import DEEPER_KINDS, FIRST, LONGEST, NOT_FIRST, longest_first, select_first


@pytest.mark.parametrize("path", [*FIRST, *NOT_FIRST, *LONGEST])
def test_each_entry_exists(path: str) -> None:
    file, _, test = path.partition("::")
    assert (ROOT / file).exists()
    assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")


class _Call:
    def __init__(self, **params: object) -> None:
        self.params = params


class _Item:
    def __init__(self, nodeid: str, **params: object) -> None:
        self.nodeid = nodeid
        if params:
            self.callspec = _Call(**params)


def test_contracts_run_on_one_server_and_all_other_kinds_are_in_the_deeper_tier() -> None:
    path = "tests/contract/test_broker.py::test_a"
    kinds = ["valkey", "memory", *sorted(DEEPER_KINDS)]
    items = [_Item(f"{path}[{kind}]", server=kind) for kind in kinds] + [
        _Item(path),
        _Item("tests/e2e/test_fuzz.py::a"),
    ]
    first, deeper = select_first(items)  # type: ignore[arg-type]  # what is read of an item
    assert [item.nodeid for item in first] == [f"{path}[valkey]", f"{path}[memory]", path]
    assert len(first) + len(deeper) == len(items)


def test_files_that_take_longest_start_first_and_the_others_keep_their_order() -> None:
    files = ["tests/b.py", LONGEST[1], "tests/a.py", LONGEST[0]]
    items = [_Item(f"{file}::test_{number}") for file in files for number in (2, 1)]
    found = longest_first(items)  # type: ignore[arg-type]  # what is read of an item
    expected = [LONGEST[0], LONGEST[1], "tests/b.py", "tests/a.py"]
    assert [item.nodeid for item in found] == [f"{file}::test_{number}" for file in expected for number in (2, 1)]


def test_only_tests_of_faults_are_run_alone() -> None:
    paths = [path for folder in ("tests", "clients/python/tests") for path in (ROOT / folder).rglob("test_*.py")]
    marked = [path for path in paths if "pytest.mark.alone" in path.read_text() and path != Path(__file__)]
    assert marked and all(path.is_relative_to(ROOT / "tests/faults") for path in marked), "`make test-all` looks there"
