"""The contract of `contracts.directory`, for RedisDirectory on each kind of server, and for the one in memory."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from snorky.gateway.contracts.directory import Member, Owner
from snorky.gateway.errors import BrokerUnavailable, InvalidMessage, LimitExceeded
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.multi.directory import SpreadDirectory
from snorky.gateway.redis.multi.hashing import targets_of
from tests.support.fakes.directories import FakeNode, RedisTestCluster, TestCluster, open_cluster
from tests.support.processes.tools import eventually
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.redis_servers import KINDS

ROOM = "chat:room"
NAMES = "messaging:names"


@pytest.fixture(params=("memory", "spread", "cluster", *KINDS))
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TestCluster]:
    async with open_cluster(request.param, tmp_path) as opened:
        await opened.listen(ROOM, "silent:room", "cursors:doc")
        yield opened


def owner(node: FakeNode, serial: int, key: str = ROOM) -> Owner:
    directory = node.directory.of(key) if isinstance(node.directory, SpreadDirectory) else node.directory
    return Owner(node.node_id, directory.incarnation, serial)


async def hears(cluster: TestCluster, roster: str, *notices: bytes) -> None:
    """Wait for the last notice, and check that these are all, in this order."""
    await cluster.until(lambda: len(cluster.heard(roster)) >= len(notices))
    assert cluster.heard(roster) == list(notices)


async def fence(cluster: TestCluster, node: FakeNode) -> None:
    """Return when all earlier publications have been received."""
    await node.directory.enter("cursors:doc", 999, "fence")
    await node.directory.leave("cursors:doc", 999)
    await cluster.until(lambda: cluster.heard("cursors:doc")[-1:] == [b"left fence"])


# -- rosters ----------------------------------------------------------------------------------------------------


async def test_the_first_entry_of_an_identity_joins_and_the_last_one_leaves(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    assert (await a.directory.enter(ROOM, 1, "alice")).is_first
    entered = await b.directory.enter(ROOM, 1, "alice")
    assert not entered.is_first
    assert [str(member.owner) for member in entered.members] == [str(owner(a, 1)), str(owner(b, 1))]
    assert await a.directory.leave(ROOM, 1)
    assert await b.directory.leave(ROOM, 1)
    await hears(cluster, ROOM, b"joined alice", b"joined-entry alice", b"left-entry alice", b"left alice")
    assert await a.directory.members(ROOM) == []


async def test_all_nodes_list_the_same_members_in_the_same_order(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await b.directory.enter(ROOM, 10, "bob", data={"x": [1, 2.5, None, "é"]})
    await b.directory.enter(ROOM, 9, "bob")
    await b.directory.enter(ROOM, 9, "bob", entry="second entry\n")
    await a.directory.enter(ROOM, 1, "alice: 3:x")
    expected = [
        Member("alice: 3:x", owner(a, 1)),
        Member("bob", owner(b, 9)),
        Member("bob", owner(b, 9), "second entry\n"),
        Member("bob", owner(b, 10), "", {"x": [1, 2.5, None, "é"]}),
    ]
    assert await a.directory.members(ROOM) == await b.directory.members(ROOM) == expected


async def test_entering_again_replaces_the_data_without_a_notice(cluster: TestCluster) -> None:
    a = await cluster.node("a")
    await a.directory.enter(ROOM, 1, "alice", data=1)
    again = await a.directory.enter(ROOM, 1, "alice", data=2)
    assert not again.is_first
    assert again.members == [Member("alice", owner(a, 1), "", 2)]
    assert await a.directory.leave(ROOM, 1)
    await hears(cluster, ROOM, b"joined alice", b"left alice")


async def test_a_connection_that_changes_its_identity_leaves_and_joins(cluster: TestCluster) -> None:
    a = await cluster.node("a")
    await a.directory.enter(ROOM, 1, "alice")
    entered = await a.directory.enter(ROOM, 1, "bob")
    assert entered.is_first
    await hears(cluster, ROOM, b"joined alice", b"left alice", b"joined bob")


async def test_an_update_replaces_data_and_publishes_its_notice(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await a.directory.enter(ROOM, 1, "alice: 7", data=1)
    assert await a.directory.update(ROOM, 1, data={"y": "\x00:"}, notice=b"moved")
    assert await a.directory.update(ROOM, 1, data=3)
    assert not await b.directory.update(ROOM, 1, data=4, notice=b"never"), "b has no such entry"
    assert await b.directory.members(ROOM) == [Member("alice: 7", owner(a, 1), "", 3)]
    await hears(cluster, ROOM, b"joined alice: 7", b"moved")


async def test_each_notice_names_its_version_and_the_one_before(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    assert await a.directory.versions([ROOM, "chat:other"]) == [0, 0]
    await a.directory.enter(ROOM, 1, "alice", data=1)
    await a.directory.enter("silent:room", 1, "alice")
    await b.directory.enter(ROOM, 1, "bob")
    await a.directory.update(ROOM, 1, data=2, notice=b"moved")
    await b.directory.leave(ROOM, 1)
    await cluster.until(lambda: len(cluster.heard(ROOM)) == 4)
    told = cluster.versions_heard(ROOM)
    assert [previous for _, previous in told] == [0, *(version for version, _ in told[:-1])]
    assert told == sorted(told) and told[0][0] > 0
    assert await b.directory.versions(["chat:other", ROOM]) == [0, told[-1][0]]
    census = await b.directory.census(ROOM)
    assert (census.version, census.members) == (told[-1][0], [Member("alice", owner(a, 1), data=2)])


async def test_versions_grow_also_over_a_roster_that_was_empty(cluster: TestCluster) -> None:
    a = await cluster.node("a")
    await a.directory.enter(ROOM, 1, "alice")
    await a.directory.leave(ROOM, 1)
    census = await a.directory.census(ROOM)
    assert census.members == [] and await a.directory.versions([ROOM]) == [0]
    await a.directory.enter(ROOM, 1, "alice")
    await cluster.until(lambda: len(cluster.heard(ROOM)) == 3)
    (_, _), (left, _), (again, previous) = cluster.versions_heard(ROOM)
    assert left <= census.version < again and previous == 0


def _bytes(node: FakeNode, serial: int, identity: str, data: object = None) -> int:
    """Count the bytes of an entry."""
    field = f"{owner(node, serial)} "
    return len(f"{field}{len(identity)}:{identity}") + len(json.dumps(data, separators=(",", ":")))


async def test_a_roster_is_bounded_in_bytes(cluster: TestCluster) -> None:
    a = await cluster.node("a", roster_max_bytes=500)
    b = await cluster.node("b", roster_max_bytes=500)
    await a.directory.enter(ROOM, 1, "alice", data="x" * 200)
    left = 500 - _bytes(a, 1, "alice", "x" * 200)
    fitting = "y" * (left - _bytes(b, 1, "bob", ""))
    text = "Full: its members and their data take 500 bytes already"
    with pytest.raises(LimitExceeded, match=text):
        await b.directory.enter(ROOM, 1, "bob", data=fitting + "y")
    assert [member.identity for member in await a.directory.members(ROOM)] == ["alice"]
    await b.directory.enter(ROOM, 1, "bob", data=fitting)
    for _ in range(2):  # the same again, and less, do not increase it
        await b.directory.enter(ROOM, 1, "bob", data=fitting)
    with pytest.raises(LimitExceeded, match=text):
        await a.directory.update(ROOM, 1, data="x" * 201)
    with pytest.raises(LimitExceeded, match=text):
        await a.directory.enter(ROOM, 1, "alice", data="x" * 201)
    with pytest.raises(LimitExceeded, match=text):
        await a.directory.enter(ROOM, 2, "alice")
    assert await a.directory.update(ROOM, 1, data="x" * 199)
    with pytest.raises(LimitExceeded, match=text):
        await b.directory.update(ROOM, 1, data=fitting + "yy")
    assert await b.directory.update(ROOM, 1, data=fitting + "y")
    assert await a.directory.leave(ROOM, 1)
    await a.directory.enter(ROOM, 2, "carol", data="x" * 199)
    assert [member.identity for member in await a.directory.members(ROOM)] == ["bob", "carol"]
    await fence(cluster, a)
    joins = [notice for notice in cluster.heard(ROOM) if notice.startswith(b"joined")]
    assert joins == [b"joined alice", b"joined bob", b"joined carol"]


async def test_entering_returns_the_version_of_the_list(cluster: TestCluster) -> None:
    a = await cluster.node("a")
    first = await a.directory.enter(ROOM, 1, "alice")
    second = await a.directory.enter(ROOM, 2, "bob")
    await cluster.until(lambda: len(cluster.heard(ROOM)) == 2)
    assert [first.version, second.version] == [version for version, _ in cluster.versions_heard(ROOM)]


async def test_only_the_owner_can_leave(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await a.directory.enter(ROOM, 1, "alice")
    assert not await b.directory.leave(ROOM, 1)
    assert not await a.directory.leave(ROOM, 2)
    assert len(await a.directory.members(ROOM)) == 1
    assert await a.directory.leave(ROOM, 1)
    assert not await a.directory.leave(ROOM, 1)


async def test_without_a_change_no_notice_is_published(cluster: TestCluster) -> None:
    a = await cluster.node("a")
    await a.directory.enter("silent:room", 1, "alice")
    await a.directory.leave("silent:room", 1)
    await fence(cluster, a)
    assert cluster.heard("silent:room") == []


async def test_data_that_is_not_json_is_refused_without_a_trace(cluster: TestCluster) -> None:
    a = await cluster.node("a")
    for data in (float("nan"), b"bytes", {1: 2}):
        with pytest.raises(InvalidMessage):
            await a.directory.enter(ROOM, 1, "alice", data=data)
    assert await a.directory.members(ROOM) == []


async def test_racing_nodes_have_one_first_and_one_last(cluster: TestCluster) -> None:
    nodes = [await cluster.node(node_id) for node_id in "abc"]
    for round_ in range(5):
        entered = await asyncio.gather(
            *(node.directory.enter(ROOM, serial, "alice") for node in nodes for serial in range(5))
        )
        assert sum(each.is_first for each in entered) == 1
        assert all(await asyncio.gather(*(node.directory.leave(ROOM, serial) for node in nodes for serial in range(5))))
        await cluster.until(lambda expected=(round_ + 1) * 30: len(cluster.heard(ROOM)) == expected)  # type: ignore[misc]
    told = [notice for notice in cluster.heard(ROOM) if b"-entry" not in notice]
    assert told == [b"joined alice", b"left alice"] * 5


# -- names ------------------------------------------------------------------------------------------------------


async def test_a_name_has_one_owner_in_the_cluster(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    assert await a.directory.claim(NAMES, "x y:z", 1)
    assert await a.directory.claim(NAMES, "x y:z", 1), "it is its own name"
    assert not await b.directory.claim(NAMES, "x y:z", 1)
    assert not await a.directory.claim(NAMES, "x y:z", 2)
    assert await b.directory.claim("other:names", "x y:z", 1)
    assert await b.directory.find(NAMES, "x y:z") == owner(a, 1, NAMES)
    assert not await b.directory.release(NAMES, "x y:z", 1)
    assert await a.directory.release(NAMES, "x y:z", 1)
    assert await a.directory.find(NAMES, "x y:z") is None
    assert await b.directory.claim(NAMES, "x y:z", 1)


async def test_names_are_listed(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    await a.directory.claim(NAMES, "one", 1)
    await b.directory.claim(NAMES, "two", 1, "bob")
    assert sorted(await a.directory.list_names(NAMES)) == ["one", "two"]


async def test_racing_claims_have_one_winner(cluster: TestCluster) -> None:
    nodes = [await cluster.node(node_id) for node_id in "abc"]
    for name in "abcdefgh":
        won = await asyncio.gather(
            *(node.directory.claim(NAMES, name, serial) for node in nodes for serial in range(5))
        )
        assert sum(won) == 1


async def test_the_same_identity_takes_a_name_over_and_the_loser_is_notified(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    assert await a.claim(NAMES, "desk", 1, "alice smith")
    assert not await b.claim(NAMES, "desk", 1, "bob")
    assert not await b.claim(NAMES, "desk", 1)
    assert await b.claim(NAMES, "desk", 2, "alice smith")
    assert await a.directory.find(NAMES, "desk") == owner(b, 2, NAMES)
    await cluster.until(lambda: a.lost == [(NAMES, "desk", 1)])
    await a.disowned(1)
    assert await a.directory.find(NAMES, "desk") == owner(b, 2, NAMES), "the loser releases nothing"
    assert b.lost == []


async def test_a_name_without_identity_is_never_taken_over(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    assert await a.directory.claim(NAMES, "desk", 1)
    assert not await b.directory.claim(NAMES, "desk", 1, "")
    assert not await b.directory.claim(NAMES, "desk", 1, "alice")


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
    deadline = asyncio.get_running_loop().time() + 5
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


async def test_a_token_expires(cluster: TestCluster) -> None:
    a = await cluster.node("a")
    token = await a.directory.put_token(1, 0.001)
    await asyncio.sleep(0.02)  # the time itself is tested
    assert await a.directory.take_token(token, "me") is None


@pytest.mark.parametrize("token", ["", "x" * 32, "0" * 31, "0" * 32, "*" * 32, "\ud800" * 32, "0" * 10_000])
async def test_an_invalid_token_returns_nothing(cluster: TestCluster, token: str) -> None:
    a = await cluster.node("a")
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
