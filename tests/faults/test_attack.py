"""Every attack at once against one node: limits hold, and a well-behaved client loses nothing.

`make attack` runs longer and harder, and also judges the well-behaved client's p99, which needs an idle machine.
"""

from pathlib import Path

import pytest

from tests.fault_lab.attack import REDIS_MAX_BYTES, RSS_GROWTH_MAX_BYTES, attack
from tests.fault_lab.attackers import KINDS

pytestmark = [pytest.mark.needs("redis-server"), pytest.mark.alone]


async def test_attackers_of_all_kinds_affect_no_other_client(tmp_path: Path) -> None:
    report = await attack(tmp_path, seconds=6.0, scale=0.5)
    did = dict(zip(report.did.split()[::2], map(int, report.did.split()[1::2]), strict=True))
    assert did.keys() == KINDS.keys() and all(did.values()), report
    assert (report.missing, report.forged) == (0, 0), report
    assert report.rss_growth_bytes <= RSS_GROWTH_MAX_BYTES, report
    assert report.redis_peak_bytes <= REDIS_MAX_BYTES, report
    assert report.published > 0 and "back to baseline" not in report.broken, report
