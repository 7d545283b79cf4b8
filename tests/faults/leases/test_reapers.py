"""Reapers: dead nodes are fenced by one of them, live nodes by none."""

import asyncio
from collections.abc import Sequence

from snorky.gateway.redis import Timings
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.directory.owned_index import OwnedItem
from snorky.gateway.redis.keys import counts_key, names_key, owned_key, roster_key
from tests.support.fakes.brokers import PREFIX
from tests.support.fakes.directories import RedisTestCluster
from tests.support.scenarios.leases import (
    NAMES,
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


async def test_what_redis_restores_during_a_cleanup_is_found_by_the_next_one(cluster: RedisTestCluster) -> None:
    """Redis comes back with an older copy between the two steps: what the first one deleted is there again."""
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 5)
    owner, index = inside(a)._lease.owner, inside(b)._owned_index
    await inside(b)._reaper.stop()
    await cluster.crash(a)
    keys = [roster_key(PREFIX, ROOM), counts_key(PREFIX, ROOM), names_key(PREFIX, NAMES), owned_key(PREFIX, owner)]
    copies = await index._scripts.run(*(command(b"DUMP", key) for key in keys))
    give_back = index.give_back

    async def interrupted(owner: str, holdings: Sequence[OwnedItem], *, is_quiet: bool = False) -> list[bool]:
        found = await give_back(owner, holdings, is_quiet=is_quiet)
        pairs = [pair for pair in zip(keys, copies, strict=True) if pair[1] is not None]
        await index._scripts.run(*(command(b"RESTORE", key, b"0", copy, b"REPLACE") for key, copy in pairs))
        return found

    index.give_back = interrupted  # type: ignore[method-assign]
    assert await index.sweep(owner) == 10
    index.give_back = give_back  # type: ignore[method-assign]
    assert await index.sweep(owner) == 10
    assert await index.sweep(owner) == 0
    assert await b.directory.members(ROOM) == [] and await b.directory.list_names(NAMES) == []
