"""Reapers: dead nodes are fenced by one of them, live nodes by none."""

import asyncio

from snorky.gateway.redis import Timings
from tests.support.fakes.directories import RedisTestCluster
from tests.support.scenarios.leases import (
    ROOM,
    each_once,
    inside,
    never,
    populate,
    told,
)

# -- reapers ------------------------------------------------------------------------------------------------------


async def test_one_of_racing_reapers_gets_the_claim_and_each_left_is_reported_once(
    cluster: RedisTestCluster, timings: Timings
) -> None:
    nodes = [await cluster.node(node_id) for node_id in "abcde"]
    await populate(cluster, nodes[0], 100)
    owner = inside(nodes[0])._lease.owner
    for node in nodes:
        await inside(node)._reaper.stop()
    await cluster.crash(nodes[0])
    await asyncio.sleep(timings.ttl_s * 1.1)  # until its lease has expired
    seized = await asyncio.gather(*(inside(node)._reaper._seize(owner) for node in nodes[1:]))
    assert sorted(seized) == [False, False, False, True]
    swept = await asyncio.gather(*(inside(node)._owned_index.sweep(owner) for node in nodes[1:]))
    assert sum(swept) == 200
    await cluster.until(lambda: len(cluster.heard(ROOM)) >= 200)
    assert told(cluster, "left") == each_once("left", "a", 100)


async def test_a_live_node_is_not_fenced(cluster: RedisTestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 1)
    assert not await inside(b)._reaper._seize(inside(a)._lease.owner)
    assert not await inside(b)._reaper._seize("nobody:i")


async def test_a_cleanup_that_one_reaper_does_not_finish_is_finished_by_another(
    cluster: RedisTestCluster, timings: Timings
) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 5)
    owner = inside(a)._lease.owner
    await inside(b)._reaper.stop()
    await cluster.crash(a)
    await asyncio.sleep(timings.ttl_s * 1.1)
    assert await inside(b)._reaper._seize(owner)
    await cluster.crash(b)  # before it cleaned up anything
    await cluster.node("c")
    await cluster.until(lambda: told(cluster, "left") == each_once("left", "a", 5))


async def test_a_node_is_fenced_only_after_two_sightings_with_an_own_renewal_between(
    cluster: RedisTestCluster, timings: Timings
) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 1)
    lease = inside(b)._lease
    await lease.abandon()  # b cannot renew: the cause may be Redis
    lease._timings = Timings()  # although its lease would still be valid
    await inside(a)._lease.abandon()
    await cluster.until(lambda: inside(b)._reaper._sightings)
    await never(timings, 1.0, lambda: told(cluster, "left"))
    lease._timings = timings
    lease.start()
    await cluster.until(lambda: told(cluster, "left"))


async def test_a_stalled_reaper_starts_again(cluster: RedisTestCluster, timings: Timings) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 1)
    reaper = inside(b)._reaper
    await reaper.stop()
    await inside(a)._lease.abandon()
    await asyncio.sleep(timings.ttl_s * 1.1)
    await reaper._look()
    (first,) = reaper._sightings.values()
    await asyncio.sleep(timings.sighting_s * 1.5)  # it stalls
    await reaper._look()
    (second,) = reaper._sightings.values()
    assert second.at > first.at and not told(cluster, "left")
