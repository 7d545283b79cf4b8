"""Parts of the fault laboratory that are tested without a lab: growth, the table, the mutations' guards."""

from pathlib import Path

import pytest

from tests.fault_lab.checker import Verdict
from tests.fault_lab.faults import ALL
from tests.fault_lab.mutations import MUTATIONS, Mutation, mutate
from tests.fault_lab.soak import Sample, growths
from tests.fault_lab.table import render
from tests.fault_lab.trial import Outcome
from tests.support.processes.tools import ROOT

MIB = 1 << 20


def sample(*, rss_mib: float = 300.0, redis_keys: float = 50.0, tasks: float = 60.0) -> Sample:
    return Sample(rss_mib * MIB, 120, 6, tasks, redis_keys, 500)


def grown(samples: list[Sample]) -> list[str]:
    return [growth.name for growth in growths(samples, nodes=3) if not growth.is_flat]


def test_growth_that_ends_in_the_first_quarter_counts_as_flat() -> None:
    assert grown([sample(rss_mib=100), sample(rss_mib=200), *[sample()] * 14]) == []


def test_a_steady_leak_is_not_flat() -> None:
    assert grown([sample(rss_mib=300 + 5 * step) for step in range(16)]) == ["rss_bytes"]
    assert grown([sample(redis_keys=50 + 10 * step) for step in range(16)]) == ["redis_keys"]
    assert grown([sample(tasks=60 + 4 * step) for step in range(16)]) == ["tasks"]


@pytest.mark.parametrize("mutation", [pytest.param(one, id=one.guard) for one in MUTATIONS])
def test_each_guard_that_is_taken_out_is_still_there(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1


def test_a_guard_that_is_not_found_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "guard.py").write_text("if is_allowed:\n    pass\n")
    mutate(tmp_path, Mutation("guard", "guard.py", "if is_allowed:", "if True:", ()))
    with pytest.raises(AssertionError, match="0 times"):
        mutate(tmp_path, Mutation("guard", "guard.py", "if is_allowed:", "if True:", ()))


def test_the_table_shows_broken_promises() -> None:
    outcome = Outcome(ALL["kill"], Verdict(lost=3, resyncs=1), healed_s=float("inf"), broken=["3 lost"])
    drawn = render([outcome])
    assert "3/0/0" in drawn and "never" in drawn and "BROKEN: 3 lost" in drawn
    assert "kept" in render([Outcome(ALL["kill"])])
