"""Faults of a Redis with several servers: a lagging replica is promoted, slots move, a primary dies."""

import asyncio

from snorky.gateway.redis.cluster.slots import slot_of
from snorky.gateway.redis.keys import channel_name
from tests.fault_lab.faults.rollbacks import absent, tell_resyncs
from tests.fault_lab.plan import PREFIX
from tests.fault_lab.trial import Fault, Trial
from tests.fault_lab.visitors import Visitors, pick, until_all_present
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.sentinels import SentinelLab

__all__ = ["TOPOLOGY_FAULTS"]

LAG_S = 2.0
REBUILT_WITHIN_S = 10.0
SLOTS_MOVED = 6
CLUSTER_HEALED_WITHIN_S = 5.0
HEALED_WITHIN_S = 6.0  # of the nodes, after the sentinels agree


async def fail_over(trial: Trial) -> None:
    """The primary dies; a replica without its last seconds is promoted and assigns their offsets again."""
    lab, sentinels = trial.lab, trial.lab.topology
    assert isinstance(sentinels, SentinelLab)
    await sentinels.let_replica_lag()
    visitors = await Visitors.on(lab, pick(lab))  # writes that the replica does not receive
    trial.expected_lefts.update(visitors.identities)  # at the end
    try:
        before, since = absent(lab)
        async with lab.crowd.away(*before):
            await asyncio.sleep(LAG_S)
            async with lab.crowd.away(*since):
                sentinels.primary.kill()
                await sentinels.until_failed_over()
                trial.ended()
        took_s = await until_all_present(lab, REBUILT_WITHIN_S + 10, others=visitors.identities)
        trial.expect_within(took_s, REBUILT_WITHIN_S, "the last visitors are present again")
        trial.expect(not any(visitors.seen("left")), "a visitor was reported as left")
        await lab.whole(within_s=15)
        tell_resyncs(trial)
    finally:
        await visitors.dismiss()


async def move_slots(trial: Trial) -> None:
    """Slots of channels in use move to another primary, with all their keys."""
    cluster = trial.lab.topology
    assert isinstance(cluster, ClusterLab)
    channels = trial.lab.plan.channel_names[:SLOTS_MOVED]
    for channel in channels:
        slot = slot_of(channel_name(PREFIX, f"pubsub:{channel}"))
        source = await _owner(cluster, slot)
        await cluster.move_slot(slot, source, (source + 1) % cluster.primaries)
    trial.ended()
    trial.figure(f"{len(channels)} slots moved")


async def _owner(cluster: ClusterLab, slot: int) -> int:
    """Find the primary that serves a slot now."""
    ports = [server.port for server in cluster.servers]
    for first, last, primary, *_ in await cluster.ask(0, "CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return ports.index(primary[1])
    raise AssertionError(f"no primary serves slot {slot}")


async def lose_primary(trial: Trial) -> None:
    """A primary of the cluster dies; its replica is promoted."""
    cluster = trial.lab.topology
    assert isinstance(cluster, ClusterLab)
    cluster.servers[0].kill()
    await cluster.until_primary(cluster.primaries)  # the first replica belongs to the first primary
    trial.ended()


TOPOLOGY_FAULTS = (
    Fault(
        key="slots",
        name="Cluster: slots move",
        users_see="resubscribe",
        inject=move_slots,
        topology="cluster",
        healed_within_s=CLUSTER_HEALED_WITHIN_S,
        is_random=False,
    ),
    Fault(
        key="shard",
        name="Cluster: a primary dies",
        users_see="resubscribe",
        inject=lose_primary,
        topology="cluster",
        healed_within_s=CLUSTER_HEALED_WITHIN_S,
        resyncs_max=2,
        allows_repeats=True,  # writes that were not replicated are lost, idempotency keys too
        may_vanish=True,
        is_random=False,  # the lab has one replica, so it can happen once
    ),
    Fault(
        key="failover",
        name="Sentinel failover to a lagging replica",
        users_see="replay or reported resync",
        inject=fail_over,
        topology="sentinel",
        healed_within_s=HEALED_WITHIN_S,
        disconnects=True,  # the clients that were away
        resyncs_max=2,
        allows_repeats=True,  # the idempotency keys of the last seconds are not replicated either
        may_vanish=True,
        is_random=False,  # the lab has one replica, so it can happen once
    ),
)
