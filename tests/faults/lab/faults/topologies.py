"""What befalls a Redis that is several servers: a replica that lagged takes over."""

import asyncio

from tests.faults.lab.trial import Fault, Trial
from tests.support.sentinels import SentinelLab

__all__ = ["TOPOLOGY_FAULTS"]

LAG_S = 2.0
HEALED_WITHIN_S = 6.0  # of the nodes, after the sentinels agree


async def fail_over(trial: Trial) -> None:
    """The primary dies; a replica that lacks its last seconds takes over, and gives their offsets out again."""
    sentinels = trial.lab.topology
    assert isinstance(sentinels, SentinelLab)
    await sentinels.let_replica_lag()
    await asyncio.sleep(LAG_S)
    sentinels.primary.kill()
    await sentinels.until_failed_over()
    trial.ended()


TOPOLOGY_FAULTS = (
    Fault(
        key="failover",
        name="Sentinel failover to a lagging replica",
        users_see="replay or honest resync",
        inject=fail_over,
        topology="sentinel",
        healed_within_s=HEALED_WITHIN_S,
        resyncs_max=2,
        allows_repeats=True,  # the keys of the last seconds are not replicated either
        may_vanish=True,
        is_random=False,  # it can happen once
    ),
)
