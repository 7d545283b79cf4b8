"""A Redis that pauses, refuses writes, loses its state or returns to an older copy."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from snorky.gateway.contracts.directory import Member, Owner
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis import Timings
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.directory.owned_index import RosterEntry
from snorky.gateway.redis.keys import leases_key, names_key, owned_key, reaped_key
from tests.support.fakes.brokers import PREFIX
from tests.support.fakes.directories import FakeNode, RedisTestCluster
from tests.support.processes.tools import eventually
from tests.support.scenarios.leases import (
    NAMES,
    ROOM,
    all_claimed,
    each_once,
    inside,
    names_of,
    never,
    populate,
    told,
)
from tests.support.servers.redis_servers import RedisServer


def frozen_server(cluster: RedisTestCluster) -> RedisServer:
    assert isinstance(cluster.server, RedisServer)
    return cluster.server


# -- Redis --------------------------------------------------------------------------------------------------------


async def test_a_pause_of_redis_fences_no_node(cluster: RedisTestCluster, timings: Timings) -> None:
    nodes = [await cluster.node(node_id) for node_id in "abc"]
    for node in nodes:
        await populate(cluster, node, 20)
    incarnations = [node.directory.incarnation for node in nodes]
    server = frozen_server(cluster)
    server.freeze()
    try:
        await asyncio.sleep(timings.ttl_s * 1.5)  # 12 s
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await nodes[0].enter(ROOM, 100, "while it is frozen")
        assert time.monotonic() - began < 1.0, "a node without a lease refuses at once"
    finally:
        server.thaw()
    await never(timings, 2.0, lambda: told(cluster, "left"))
    assert [node.directory.incarnation for node in nodes] == incarnations
    assert await nodes[0].enter(ROOM, 100, "afterwards")
    assert len(await nodes[1].directory.members(ROOM)) == 61


async def test_a_node_that_died_before_the_clock_of_redis_was_set_back_is_reaped_in_time(
    cluster: RedisTestCluster, timings: Timings
) -> None:
    """By a clock an hour behind, its lease expires in an hour; so does that of a dead node that is cleaned up."""
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, b, 3)
    owner = f"b:{b.directory.incarnation}"
    await cluster.crash(b)
    async with cluster.client() as client:
        (ends_ms,) = await client.zmscore(leases_key(PREFIX), [owner])
        assert await client.zadd(leases_key(PREFIX), {owner: ends_ms + 3_600_000}, xx=True, ch=True)
        await client.zadd(reaped_key(PREFIX), {"c:1": ends_ms + 3_600_000})
        await cluster.until(lambda: told(cluster, "left") == each_once("left", "b", 3), within_s=15)
        assert not await a.directory.members(ROOM)
        (due_ms,) = await client.zmscore(reaped_key(PREFIX), ["c:1"])
        assert due_ms is None or due_ms < ends_ms + 1_800_000


async def test_a_redis_that_refuses_writes_fences_no_node(cluster: RedisTestCluster, timings: Timings) -> None:
    nodes = [await cluster.node(node_id) for node_id in "abcdef"]
    for node in nodes:
        await populate(cluster, node, 2)
    incarnations = [node.directory.incarnation for node in nodes]
    async with cluster.client() as client:
        for _ in range(3):
            await client.config_set("min-replicas-to-write", 1)
            # the duration itself is part of the fault: 14 s of the promised 8 s
            await asyncio.sleep(timings.ttl_s * 1.75)
            renewals = [inside(node)._lease.renewals for node in nodes]
            await client.config_set("min-replicas-to-write", 0)
            await eventually(lambda: are_renewed(nodes, renewals), within_s=10, what="renewals")  # noqa: B023
            await never(timings, 1.0, lambda: told(cluster, "left"))
    assert [node.directory.incarnation for node in nodes] == incarnations, "no node was fenced"


async def test_a_node_counts_no_sightings_while_it_cannot_renew(cluster: RedisTestCluster, timings: Timings) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, b, 2)
    incarnation = b.directory.incarnation
    async with cluster.client() as client:
        await client.config_set("min-replicas-to-write", 1)
        await asyncio.sleep(timings.ttl_s * 1.75)  # the duration itself is part of the fault
        await inside(b)._lease.abandon()  # it renews after the other has looked
        renewals, looked_at = inside(a)._lease.renewals, asyncio.get_running_loop().time()
        await client.config_set("min-replicas-to-write", 0)
        await cluster.until(lambda: inside(a)._lease.renewals > renewals and inside(a)._reaper._looked_at > looked_at)
        inside(b)._lease.start()
        await never(timings, 1.5, lambda: told(cluster, "left"))
    assert b.directory.incarnation == incarnation, "it was not fenced"


async def are_renewed(nodes: Sequence[FakeNode], renewals: Sequence[int]) -> bool:
    return all(inside(node)._lease.renewals > before for node, before in zip(nodes, renewals, strict=True))


async def test_a_node_that_renews_late_after_a_pause_of_redis_is_not_fenced(
    cluster: RedisTestCluster, timings: Timings
) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 5)
    await inside(a)._lease.abandon()
    server = frozen_server(cluster)
    server.freeze()
    await asyncio.sleep(timings.ttl_s * 1.5)
    server.thaw()
    await cluster.until(lambda: inside(b)._reaper._sightings)  # its lease has expired, as all have
    await asyncio.sleep(timings.sighting_s * 0.5)
    inside(a)._lease.start()
    await never(timings, 1.5, lambda: told(cluster, "left"))


async def test_after_flushall_all_is_asserted_again_quietly(cluster: RedisTestCluster, timings: Timings) -> None:
    nodes = [await cluster.node(node_id) for node_id in "abc"]
    for node in nodes:
        await populate(cluster, node, 100)
    await nodes[0].directory.disowned(7)  # the node may say that it is still registered: it is not
    before = await nodes[0].directory.members(ROOM), await names_of(nodes[0])
    async with cluster.client() as client:
        await client.flushall()
        began = time.monotonic()
        await eventually(lambda: is_back(nodes[1], before[0]), within_s=10, what="members registered again")
        await eventually(lambda: all_claimed(nodes[1], 299), within_s=10, what="names claimed again")
        print(f"asserted again after {time.monotonic() - began:.2f} s")
    await never(timings, 1.5, lambda: len(cluster.heard(ROOM)) != 301)
    (version,) = await nodes[0].directory.versions([ROOM])
    assert version, "a node that reported members as gone must see another roster version"
    assert (await nodes[0].directory.members(ROOM), await names_of(nodes[0])) == before
    await cluster.crash(nodes[0])
    await cluster.until(lambda: len(cluster.heard(ROOM)) == 400, within_s=15)  # its index was registered again too


async def is_back(node: FakeNode, members: list[Member]) -> bool:
    return await node.directory.members(ROOM) == members


async def test_after_a_restart_from_an_older_copy_rosters_and_names_match_the_nodes(
    cluster: RedisTestCluster,
) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 3)
    await populate(cluster, b, 3)
    await a.claim(NAMES, "moves", 0)
    async with cluster.client() as client:
        await client.save()
    await a.disowned(1)
    await a.enter(ROOM, 7, "a-7")
    await a.claim(NAMES, "a-7", 7)
    await a.directory.release(NAMES, "moves", 0)
    a.names.pop((NAMES, "moves"))
    await b.claim(NAMES, "moves", 2)
    await cluster.until(lambda: cluster.heard(ROOM)[-1:] == [b"joined a-7"])
    before, heard = (await b.directory.members(ROOM), await names_of(b)), list(cluster.heard(ROOM))
    await cluster.server.restart()

    async def is_true() -> bool:
        try:
            return (await b.directory.members(ROOM), await names_of(b)) == before
        except BrokerUnavailable:
            return False

    await eventually(is_true, within_s=10, what="the correct members")
    await eventually(is_settled(a, b), within_s=10, what="the work is done")
    assert (await b.directory.members(ROOM), await names_of(b)) == before
    assert cluster.heard(ROOM) == heard, "no joins or leaves were reported"
    assert not a.lost and not b.lost


async def test_a_name_of_an_older_copy_is_waited_for(cluster: RedisTestCluster) -> None:
    """The former holder releases it slowly; the present owner does not lose it meanwhile."""
    a, b = await cluster.node("a"), await cluster.node("b")
    await a.claim(NAMES, "moves", 0)
    async with cluster.client() as client:
        await client.save()
    await a.directory.release(NAMES, "moves", 0)
    a.names.pop((NAMES, "moves"))
    await b.claim(NAMES, "moves", 2)
    may_go_on = asyncio.Event()
    comparison = inside(a)._reconciler._comparison
    drop_strays = comparison.drop_strays

    async def late(owner: str) -> int:
        await may_go_on.wait()
        return int(await drop_strays(owner))

    comparison.drop_strays = late
    await cluster.server.restart()
    await eventually(lambda: is_contested(b), within_s=10, what="b sees that a has it")
    may_go_on.set()
    await eventually(is_settled(a, b), within_s=10, what="the work is done")
    found = await names_of(a)
    assert found["moves"].node_id == "b" and not b.lost


async def is_contested(node: FakeNode) -> bool:
    return bool(inside(node)._reconciler._contested) or bool(node.lost)


def is_settled(*nodes: FakeNode) -> Callable[[], Awaitable[bool]]:
    async def tell() -> bool:
        return all(inside(node)._reconciler.is_idle and not inside(node)._reconciler.is_asserting for node in nodes)

    return tell


async def test_evicted_entries_are_registered_again(cluster: RedisTestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 3)
    before = await b.directory.members(ROOM), await names_of(b)
    (owner,) = {f"{member.owner.node_id}:{member.owner.incarnation}" for member in before[0]}
    keys = [*inside(a)._rosters._keys(ROOM), names_key(PREFIX, NAMES), owned_key(PREFIX, owner)]
    async with cluster.client() as client:
        for evicted in ([keys[0]], [keys[1]], keys[2:], keys):
            await client.delete(*evicted)
            inside(a)._reconciler._compare_at = 0.0
            inside(a)._reconciler._todo.set()
            await eventually(lambda: is_whole(client, b, before, keys), within_s=5, what=f"{evicted} again")
        assert int(await client.hget(keys[1], "ia-0")) == 1
    mended = inside(a)._reconciler._comparison._mended
    counted = {kind: mended.labels(kind)._value.get() for kind in ("member", "name", "counts", "index", "stray")}
    assert counted == {"member": 6, "name": 6, "counts": 1, "index": 12, "stray": 0}
    assert len(cluster.heard(ROOM)) == 3, "no notice was sent"


async def is_whole(client: Any, node: FakeNode, before: object, keys: Sequence[bytes]) -> bool:
    is_true = (await node.directory.members(ROOM), await names_of(node)) == before
    return is_true and await client.exists(*keys) == len(keys)


async def test_entries_in_redis_that_no_node_knows_are_removed(cluster: RedisTestCluster) -> None:
    a = await cluster.node("a")
    await populate(cluster, a, 1)
    owner = f"a:{a.directory.incarnation}"
    place = RosterEntry(ROOM, 9, "")
    async with cluster.client() as client:
        await client.sadd(owned_key(PREFIX, owner), place.element())
        await client.hset(inside(a)._rosters._keys(ROOM)[0], f"{owner}:9 ", "5:ghostnull")
        inside(a)._reconciler._compare_at = 0.0
        inside(a)._reconciler._todo.set()
        await eventually(lambda: is_back(a, [a.held[ROOM, 0, ""]]), within_s=5, what="without the stale entry")
        assert await client.scard(owned_key(PREFIX, owner)) == 2
    assert len(cluster.heard(ROOM)) == 1


async def test_data_that_was_replaced_while_all_was_asserted_again_is_not_lost(cluster: RedisTestCluster) -> None:
    a = await cluster.node("a")
    await a.enter(ROOM, 1, "alice", data="old")
    old = list(a.local_members())
    a.local_members = lambda: a.__dict__.pop("local_members") and old  # type: ignore[method-assign]  # the first time
    async with cluster.client() as client:
        await client.flushall()
    a.held[ROOM, 1, ""] = Member("alice", old[0][1].owner, "", "new")
    assert not await a.directory.update(ROOM, 1, data="new")
    await eventually(lambda: has_data(a, "new"), within_s=5, what="the new data")


async def has_data(node: FakeNode, data: str) -> bool:
    return [member.data for member in await node.directory.members(ROOM)] == [data]


async def test_after_a_restart_empty_all_is_asserted_again_quietly(cluster: RedisTestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await populate(cluster, a, 20)
    before = await b.directory.members(ROOM)
    await cluster.server.restart()
    await eventually(lambda: is_back_after_all(b, before), within_s=10, what="members registered again")
    assert len(cluster.heard(ROOM)) == 20


async def is_back_after_all(node: FakeNode, members: list[Member]) -> bool:
    try:
        return await is_back(node, members)
    except BrokerUnavailable:
        return False


async def test_members_that_disconnect_while_redis_is_frozen_leave_when_it_is_back(
    cluster: RedisTestCluster, timings: Timings
) -> None:
    a, b = await cluster.node("a", timeout_s=0.3), await cluster.node("b")
    await populate(cluster, a, 3)
    server = frozen_server(cluster)
    server.freeze()
    try:
        await a.disowned(1)
        with pytest.raises(BrokerUnavailable):
            await a.enter(ROOM, 8, "perhaps")
    finally:
        server.thaw()
    await cluster.until(lambda: b"left a-1" in cluster.heard(ROOM))
    await eventually(lambda: are(b, ["a-0", "a-2"]), within_s=5, what="refused entries are absent")
    told_of = [notice for notice in cluster.heard(ROOM) if notice.endswith(b"perhaps")]
    assert told_of in ([], [b"joined perhaps", b"left perhaps"])


async def test_a_write_that_arrives_after_its_undo_is_undone_too(cluster: RedisTestCluster) -> None:
    a, b = await cluster.node("a", timeout_s=0.3), await cluster.node("b")
    server = frozen_server(cluster)
    await a.directory.members(ROOM)
    server.freeze()
    with pytest.raises(BrokerUnavailable):
        await a.enter(ROOM, 8, "late")
    server.thaw()
    await eventually(lambda: is_asked(b), within_s=5, what="redis is back")
    owner = inside(a)._lease.owner
    await cluster.until(
        lambda: not inside(a)._local_holdings.due_cleanups(1) and inside(a)._local_holdings.has_cleanups
    )  # undone once
    await inside(b)._scripts.run(
        command(b"SADD", owned_key("test", owner), RosterEntry(ROOM, 8, "").element()),
        inside(b)._rosters.entering(ROOM, Member("late", Owner.parse(f"{owner}:8"))),
    )
    await cluster.until(lambda: cluster.heard(ROOM)[-2:] == [b"joined late", b"left late"])


async def is_asked(node: FakeNode) -> bool:
    return await is_back_after_all(node, [])


async def test_a_leaving_that_was_cancelled_is_finished(cluster: RedisTestCluster) -> None:
    a = await cluster.node("a")
    await populate(cluster, a, 2)
    server = frozen_server(cluster)
    server.freeze()
    leaving = asyncio.ensure_future(a.directory.disowned(1))
    await asyncio.sleep(0.05)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    server.thaw()
    await cluster.until(lambda: b"left a-1" in cluster.heard(ROOM))
    await eventually(lambda: are(a, ["a-0"]), within_s=5, what="only the other is in")


async def are(node: FakeNode, identities: list[str]) -> bool:
    return [member.identity for member in await node.directory.members(ROOM)] == identities


async def test_a_full_redis_refuses_joins_and_accepts_leaves(cluster: RedisTestCluster, timings: Timings) -> None:
    a, b, c = [await cluster.node(node_id) for node_id in "abc"]
    await populate(cluster, a, 3)
    await c.enter(ROOM, 1, "c-1")
    async with cluster.client() as client:
        await client.config_set("maxmemory", 1)
        with pytest.raises(BrokerUnavailable):
            await a.enter(ROOM, 8, "too much")
        with pytest.raises(BrokerUnavailable):
            await a.claim(NAMES, "too much", 8)
        with pytest.raises(BrokerUnavailable):
            await a.directory.put_token(1, 60)
        assert not [notice for notice in cluster.heard(ROOM) if b"too much" in notice], "refused before any write"
        await a.disowned(0)
        assert await a.leave(ROOM, 1)
        await cluster.crash(c)
        await cluster.until(lambda: b"left c-1" in cluster.heard(ROOM))  # cleaned up
        renewals = inside(a)._lease.renewals
        await never(timings, 2.0, lambda: b"left a-2" in cluster.heard(ROOM))
        assert inside(a)._lease.renewals > renewals, "the lease is valid"
        assert [member.identity for member in await b.directory.members(ROOM)] == ["a-2"]
        await client.config_set("maxmemory", 0)
    assert await a.enter(ROOM, 8, "room again")
