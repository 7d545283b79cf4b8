"""Nodes that die, stall or are fenced: others see each member leave once, and come back once."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from snorky.gateway.contracts.directory import Member, Owner
from snorky.gateway.errors import BrokerUnavailable, ConnectionClosed
from snorky.gateway.redis import Timings
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.directory.owned_index import RosterEntry
from snorky.gateway.redis.keys import names_key, owned_key
from tests.support.fakes.brokers import PREFIX
from tests.support.fakes.directories import FakeNode, RedisTestCluster
from tests.support.processes.nodes import Process
from tests.support.processes.tools import ROOT, eventually
from tests.support.scenarios.leases import (
    NAMES,
    ROOM,
    ROOMS,
    all_claimed,
    each_once,
    inside,
    names_of,
    never,
    populate,
    told,
)


async def child(
    cluster: RedisTestCluster, node_id: str, count: int, timings: Timings, rooms: Sequence[str] = (ROOM,)
) -> Process:
    factor = timings.ttl_s / Timings().ttl_s
    words = [cluster.server.url, node_id, str(count), str(factor), *rooms]
    process = Process([sys.executable, "-m", "tests.support.processes.directory_node", *words], cwd=ROOT, ready="ready")
    try:
        await process.wait_ready(60.0)
    except BaseException:
        await process.close()
        raise
    return process


# -- nodes --------------------------------------------------------------------------------------------------------


async def test_entries_of_a_killed_node_are_removed_with_one_left_each(
    cluster: RedisTestCluster, timings: Timings
) -> None:
    count = 300
    b = await cluster.node("b")
    await cluster.node("c")
    process = await child(cluster, "a", count, timings, ROOMS)
    try:
        await cluster.until(lambda: heard_in_all(cluster) == count, within_s=15)
        process.kill()
        began = time.monotonic()
        await cluster.until(lambda: heard_in_all(cluster) == 2 * count, within_s=15)
        await eventually(lambda: is_empty(b), within_s=max(0.1, began + 15 - time.monotonic()), what="names free")
    finally:
        await process.close()
    assert sum((told(cluster, "joined", room) for room in ROOMS), Counter()) == each_once("joined", "a", count)
    assert sum((told(cluster, "left", room) for room in ROOMS), Counter()) == each_once("left", "a", count)
    assert await b.directory.members(ROOM) == []


def heard_in_all(cluster: RedisTestCluster) -> int:
    return len(cluster.heard_anywhere())


async def is_empty(node: FakeNode) -> bool:
    return not await node.directory.list_names(NAMES)


async def test_a_node_stalled_for_long_leaves_once_and_joins_once(cluster: RedisTestCluster, timings: Timings) -> None:
    count = 50
    b = await cluster.node("b")
    process = await child(cluster, "a", count, timings)
    try:
        await cluster.until(lambda: len(cluster.heard(ROOM)) == count)
        process.freeze()
        try:
            await cluster.until(lambda: len(cluster.heard(ROOM)) == 2 * count, within_s=15)
            await eventually(lambda: is_empty(b), within_s=1, what="names free")
            assert await b.claim(NAMES, "a-7", 1), "it is free"
            await asyncio.sleep(timings.ttl_s * 0.5)  # the rest of the stall
        finally:
            process.thaw()
        await cluster.until(lambda: len(cluster.heard(ROOM)) == 3 * count)
        await eventually(lambda: all_claimed(b, count), within_s=5, what="names claimed again")
        await eventually(lambda: says(process, "lost a-7"), within_s=5, what="notified of the lost name")
        await never(timings, 1.5, lambda: len(cluster.heard(ROOM)) != 3 * count)
    finally:
        await process.close()
    heard = cluster.heard(ROOM)
    for part, kind in enumerate(("joined", "left", "joined")):
        assert Counter(heard[part * count : (part + 1) * count]) == each_once(kind, "a", count)
    owners = await names_of(b)
    assert owners["a-7"].node_id == "b" and Counter(owner.node_id for owner in owners.values()) == {"a": 49, "b": 1}
    assert len(await b.directory.members(ROOM)) == count


async def says(process: Process, text: str) -> bool:
    return text in process.log


async def test_a_fenced_node_takes_a_new_incarnation_and_is_still_reached(cluster: RedisTestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 3)
    former = Owner("a", a.directory.incarnation, 1)
    await inside(a)._lease.abandon()
    await cluster.until(lambda: told(cluster, "left") == each_once("left", "a", 3))
    inside(a)._lease.start()
    await cluster.until(lambda: len(cluster.heard(ROOM)) == 9)
    assert former.incarnation != a.directory.incarnation
    assert {member.owner.incarnation for member in await b.directory.members(ROOM)} == {a.directory.incarnation}
    assert await b.directory.send(former, b"by its former address"), "the connection is the same"


async def test_an_expired_lease_is_simply_renewed(cluster: RedisTestCluster, timings: Timings) -> None:
    a = await cluster.node("a")  # alone, so no node cleans it up
    await populate(cluster, a, 3)
    incarnation = a.directory.incarnation
    await inside(a)._lease.abandon()
    await asyncio.sleep(timings.ttl_s * 1.5)  # until it has expired by the clock of Redis
    inside(a)._lease.start()
    await never(timings, 1.0, lambda: len(cluster.heard(ROOM)) != 3)
    assert a.directory.incarnation == incarnation
    assert await a.enter(ROOM, 9, "again")


async def test_a_node_that_could_not_renew_refuses_to_enter_and_claim(
    cluster: RedisTestCluster, timings: Timings
) -> None:
    a = await cluster.node("a")
    await populate(cluster, a, 1)
    await inside(a)._lease.abandon()
    await asyncio.sleep(timings.ttl_s * 1.1)  # the lease may have expired
    with pytest.raises(BrokerUnavailable):
        await a.enter(ROOM, 5, "late")
    with pytest.raises(BrokerUnavailable):
        await a.claim(NAMES, "late", 5)
    assert [member.identity for member in await a.directory.members(ROOM)] == ["a-0"]


async def test_a_write_after_the_cleanup_is_undone_by_its_writer(cluster: RedisTestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 1)
    former = inside(a)._lease.owner
    await inside(a)._lease.abandon()
    await cluster.until(lambda: told(cluster, "left") == each_once("left", "a", 1))
    inside(a)._lease._renewed_at = asyncio.get_running_loop().time()  # it stalled between the read and the write
    with pytest.raises(BrokerUnavailable):
        await a.enter(ROOM, 5, "late")
    with pytest.raises(BrokerUnavailable):
        await a.claim(NAMES, "late", 5)
    await cluster.until(lambda: cluster.heard(ROOM)[2:] == [b"joined late", b"left late"])
    await eventually(lambda: is_empty(b), within_s=2, what="the late name is free")
    assert await b.directory.members(ROOM) == []
    assert inside(a)._lease.owner == former


async def test_a_write_after_the_reaping_is_swept_if_its_writer_died(cluster: RedisTestCluster) -> None:
    a = await cluster.node("a")
    await cluster.node("b")
    await populate(cluster, a, 1)
    former, scripts, rosters = inside(a)._lease.owner, inside(a)._scripts, inside(a)._rosters
    await inside(a)._lease.abandon()
    await cluster.until(lambda: told(cluster, "left") == each_once("left", "a", 1))
    late = Member("late", Owner.parse(f"{former}:5"))
    element = RosterEntry(ROOM, 5, "").element()
    await scripts.run(command(b"SADD", owned_key("test", former), element), rosters.entering(ROOM, late))
    await cluster.until(lambda: cluster.heard(ROOM)[2:] == [b"joined late", b"left late"])


async def test_a_write_between_index_and_state_of_a_reaped_node_is_found_by_the_next_sweep(
    cluster: RedisTestCluster,
) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 1)
    former, scripts, rosters = inside(a)._lease.owner, inside(a)._scripts, inside(a)._rosters
    element = RosterEntry(ROOM, 5, "").element()
    await scripts.run(command(b"SADD", owned_key("test", former), element))  # and then it stalled
    await inside(a)._lease.abandon()
    await cluster.until(lambda: told(cluster, "left") == each_once("left", "a", 1))
    await scripts.run(rosters.entering(ROOM, Member("late", Owner.parse(f"{former}:5"))))
    await cluster.until(lambda: cluster.heard(ROOM)[2:] == [b"joined late", b"left late"])
    assert await b.directory.members(ROOM) == []


async def test_foreign_entries_in_an_index_do_not_keep_a_dead_nodes_members(cluster: RedisTestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 3)
    foreign = [
        b"",
        b"\xff",
        b"no JSON",
        b"[]",
        b'["r"]',
        b'["n","a:1","b",1,1]',
        b'["x","chat:1",1,""]',
        b'["r","chat:1","one",""]',
        b"1",
    ]
    await inside(a)._scripts.run(command(b"SADD", owned_key("test", inside(a)._lease.owner), *foreign))
    await inside(a)._lease.abandon()
    await cluster.until(lambda: told(cluster, "left") == each_once("left", "a", 3))
    assert await b.directory.members(ROOM) == []


async def test_a_fenced_node_finishes_its_own_reaping_before_it_joins_again(
    cluster: RedisTestCluster, timings: Timings
) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 20)
    await inside(b)._reaper.stop()
    await inside(a)._lease.abandon()
    await asyncio.sleep(timings.ttl_s * 1.1)  # until it has expired
    assert await inside(b)._reaper._seize(inside(a)._lease.owner)
    inside(a)._lease.start()  # back before b has cleaned up
    await cluster.until(lambda: len(cluster.heard(ROOM)) == 60)
    assert Counter(cluster.heard(ROOM)[20:40]) == each_once("left", "a", 20)
    assert Counter(cluster.heard(ROOM)[40:]) == each_once("joined", "a", 20)
    await eventually(lambda: all_claimed(b, 20), within_s=5, what="names claimed again")


async def test_nothing_is_entered_for_a_connection_that_is_closing(cluster: RedisTestCluster) -> None:
    a = await cluster.node("a")
    await a.enter(ROOM, 1, "alice")
    _, late = await asyncio.gather(a.directory.disowned(1), a.directory.enter(ROOM, 1, "alice"), return_exceptions=True)
    assert isinstance(late, ConnectionClosed)
    assert await a.directory.members(ROOM) == []


async def test_a_name_is_lost_only_if_another_owner_has_it(cluster: RedisTestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await a.claim(NAMES, "desk", 1, "alice")
    old_news = f'l {a.directory.incarnation} 1\n["{NAMES}","desk"]'.encode()
    async with cluster.client() as client:
        assert await client.publish(b"test:{direct a}", old_news) == 1
    assert await b.directory.send(Owner("a", a.directory.incarnation, 1), b"fence")
    await a.directory.find(NAMES, "desk")
    await a.directory.find(NAMES, "desk")  # answered after the requests of the news
    assert a.lost == [] and inside(a)._local_holdings.names()


async def test_a_name_that_was_taken_over_is_lost_although_it_is_free_or_anothers_now(
    cluster: RedisTestCluster,
) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    for serial, name in ((1, "desk"), (2, "chair")):
        await a.claim(NAMES, name, serial, "alice")
    holdings = inside(a)._local_holdings
    async with holdings.locked(1), holdings.locked(2):  # a checks late
        for name in ("desk", "chair"):
            assert await b.directory.claim(NAMES, name, 1, "alice")
            assert await b.directory.release(NAMES, name, 1)
        assert await b.claim(NAMES, "chair", 2, "bob")
        assert await b.directory.send(Owner("a", a.directory.incarnation, 1), b"fence")
    await cluster.until(lambda: sorted(a.lost) == [(NAMES, "chair", 2), (NAMES, "desk", 1)])
    assert await names_of(a) == {"chair": Owner("b", b.directory.incarnation, 2)}
    assert not holdings.names() and not b.lost


async def test_names_that_redis_has_lost_are_claimed_again_after_an_interruption(cluster: RedisTestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 3)
    before = await names_of(b)
    async with cluster.client() as client:
        await client.delete(names_key(PREFIX, NAMES))
        await client.client_kill_filter(_type="pubsub")
        await eventually(lambda: all_claimed(b, 3), within_s=5, what="names claimed again")
    assert await names_of(b) == before and not a.lost
