"""Connections that end, nodes that die, direct messages and tokens."""

import asyncio
import json
from typing import Any

import pytest

from snorky.gateway.contracts.directory import Member, Owner
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.multi.hashing import targets_of
from tests.support.fakes.directories import RedisTestCluster, TestCluster
from tests.support.processes.tools import eventually
from tests.support.scenarios.directory_owners import NAMES, ROOM, fence, hears, owner
from tests.support.servers.clusters import ClusterLab

# -- connections that end, nodes that die -----------------------------------------------------------------------


async def test_a_disconnect_releases_all_entries_of_the_connection_and_no_other(cluster: TestCluster) -> None:
    a = await cluster.node("a")
    await a.directory.enter(ROOM, 1, "alice")
    await a.directory.enter(ROOM, 1, "alice", entry="x")
    await a.directory.enter("cursors:doc", 1, "alice")
    await a.directory.enter(ROOM, 2, "bob")
    await a.directory.claim(NAMES, "one", 1)
    await a.directory.claim(NAMES, "two", 2)
    await a.directory.disowned(1)
    await a.directory.disowned(1)
    await a.directory.disowned(77)
    assert await a.directory.members(ROOM) == [Member("bob", owner(a, 2))]
    assert await a.directory.members("cursors:doc") == []
    assert await a.directory.list_names(NAMES) == ["two"]
    await fence(cluster, a)
    assert [notice for notice in cluster.heard(ROOM) if notice.startswith(b"left ")] in (
        [b"left alice"],
        [b"left alice x"],
    )


async def test_a_dead_nodes_members_leave_once_and_its_names_are_free(cluster: TestCluster) -> None:
    a, b, c = [await cluster.node(node_id) for node_id in "abc"]
    for serial in range(20):
        await a.directory.enter(ROOM, serial, f"user{serial}")
        await a.directory.claim(NAMES, f"name{serial}", serial)
    await a.directory.enter(ROOM, 100, "bob")
    await b.directory.enter(ROOM, 1, "bob")
    await c.directory.claim(NAMES, "kept", 1)
    await cluster.until(lambda: len(cluster.heard(ROOM)) == 22)
    await cluster.crash(a)
    expected = sorted([*(f"left user{serial}".encode() for serial in range(20)), b"left-entry bob"])
    await cluster.until(lambda: len(cluster.heard(ROOM)) >= 43)
    assert sorted(cluster.heard(ROOM)[22:]) == expected
    assert await b.directory.members(ROOM) == [Member("bob", owner(b, 1))]
    deadline = asyncio.get_running_loop().time() + 30
    while await b.directory.list_names(NAMES) != ["kept"]:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    assert await b.directory.claim(NAMES, "name1", 1)


async def test_unreleased_items_of_a_stopped_node_are_released_by_others(cluster: TestCluster) -> None:
    a, _ = await cluster.node("a"), await cluster.node("b")
    await a.directory.enter(ROOM, 1, "alice")
    await a.directory.stop()
    await a.directory.stop()
    await hears(cluster, ROOM, b"joined alice", b"left alice")


# -- direct -----------------------------------------------------------------------------------------------------


async def test_direct_messages_arrive_once_in_order(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await b.directory.enter(ROOM, 5, "bob")
    await a.directory.enter(ROOM, 1, "alice")
    sent = [b"%d \n \xff" % number for number in range(300)]
    assert all(await asyncio.gather(*(a.directory.send(owner(b, 5), message) for message in sent)))
    assert b.direct == [(5, message) for message in sent]
    assert await b.directory.send(owner(b, 6), b"to itself")
    assert b.direct[-1] == (6, b"to itself")


async def test_a_direct_message_to_a_closed_connection_fails_for_the_sender(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await b.directory.enter(ROOM, 5, "bob")
    b.gone.add(5)
    assert not await a.directory.send(owner(b, 5), b"late")
    assert not await a.directory.send(Owner("nobody", "i", 1), b"lost")
    await cluster.crash(b)

    async def is_told() -> bool:
        try:
            return not await a.directory.send(Owner("b", "i", 6), b"dead")
        except BrokerUnavailable:  # the server has not noticed the crash, so the outcome is unknown
            return False

    await eventually(is_told, within_s=30, what="the sender gets the error")
    assert b.direct == []


# -- tokens -----------------------------------------------------------------------------------------------------


async def test_a_token_is_taken_once_on_any_node(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    value = {"items": [1, "é", None]}
    token = await a.directory.put_token(value, 60)
    assert len(token) == 32 and token != await a.directory.put_token(value, 60)
    taken = await asyncio.gather(
        *(node.directory.take_token(token, f"taker{number}") for number, node in enumerate((a, b, a, b)))
    )
    assert sorted(taken, key=json.dumps) == [None, None, None, value] or taken.count(value) == 1
    assert await b.directory.take_token(token, "me") is None


async def test_only_its_first_user_may_use_a_token_again(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    value = {"text": "two words", "é": [1.5, None]}
    token = await a.directory.put_token(value, 60)
    for node in (a, b, a):
        assert await node.directory.take_token(token, "me") == value
        assert await node.directory.take_token(token, "m") is None
        assert await node.directory.take_token(token, "me2") is None


async def test_a_token_that_is_read_is_still_there(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    token = await a.directory.put_token([1, None], 60)
    for node in (b, a, b):
        assert await node.directory.read_token(token) == [1, None]
    assert await a.directory.take_token(token, "me") == [1, None]
    assert await b.directory.read_token(token) is None


async def test_a_token_expires(cluster: TestCluster) -> None:
    a = await cluster.node("a")
    token = await a.directory.put_token(1, 0.001)
    await asyncio.sleep(0.02)  # the time itself is tested
    assert await a.directory.read_token(token) is None
    assert await a.directory.take_token(token, "me") is None


@pytest.mark.parametrize("token", ["", "x" * 32, "0" * 31, "0" * 32, "*" * 32, "\ud800" * 32, "0" * 10_000])
async def test_an_invalid_token_returns_nothing(cluster: TestCluster, token: str) -> None:
    a = await cluster.node("a")
    assert await a.directory.read_token(token) is None
    assert await a.directory.take_token(token, "me") is None


# -- Redis only ---------------------------------------------------------------------------------------------------


async def keys_of(cluster: RedisTestCluster) -> dict[str, Any]:
    found = {}
    server = cluster.server
    clients: list[Any] = (
        [each.client() for each in server.servers]
        if isinstance(server, ClusterLab)
        else [client_of(target) for target in targets_of(server.url)]
    )
    for client in clients:
        found.update({key.decode(): await client.ttl(key) async for key in client.scan_iter()})
        found = {key: ttl for key, ttl in found.items() if ttl <= 0 or "::index" not in key}  # see reindex
        await client.aclose()
    return found


async def test_nothing_is_left_in_redis_but_leases(cluster: TestCluster) -> None:
    if not isinstance(cluster, RedisTestCluster):
        return
    a, b = await cluster.node("a"), await cluster.node("b")
    for node in (a, b):
        for serial in range(10):
            await node.directory.enter(ROOM, serial, f"user{serial}", entry="x", data=[1])
            await node.directory.claim(NAMES, f"{node.node_id}{serial}", serial)
    assert {"test:nodes{chat:room}:roster", "test:{names messaging:names}"} < (await keys_of(cluster)).keys()
    for node in (a, b):
        await asyncio.gather(*(node.directory.disowned(serial) for serial in range(10)))
    await a.directory.find(NAMES, "x")  # earlier commands are done
    await b.directory.find(NAMES, "x")
    assert (await keys_of(cluster)).keys() == {"test:{nodes}::leases"}
    await a.directory.stop()
    await b.directory.stop()
    assert await keys_of(cluster) == {}


async def test_calls_for_one_connection_take_effect_in_their_order(cluster: TestCluster) -> None:
    a = await cluster.node("a")
    await a.directory.enter(ROOM, 1, "alice")
    for _ in range(10):
        left, entered = await asyncio.gather(a.directory.leave(ROOM, 1), a.directory.enter(ROOM, 1, "alice"))
        assert left and entered.is_first
    assert await a.directory.members(ROOM) == [Member("alice", owner(a, 1))]
    await a.directory.disowned(1)
    assert await a.directory.members(ROOM) == []


async def test_every_member_of_a_crowd_is_in_its_own_list(cluster: TestCluster) -> None:
    a = await cluster.node("a")
    crowd = await asyncio.gather(*(a.directory.enter(ROOM, serial, f"user{serial}") for serial in range(200)))
    for serial, entered in enumerate(crowd):
        assert entered.is_first
        assert Member(f"user{serial}", owner(a, serial)) in entered.members
    assert len(await a.directory.members(ROOM)) == 200
