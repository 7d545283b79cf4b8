"""The contract of `contracts.directory`, for RedisDirectory on each kind of server, and for the one in memory."""

import asyncio
import json

import pytest

from snorky.gateway.contracts.directory import Member, RosterSize
from snorky.gateway.errors import InvalidMessage, LimitExceeded
from tests.support.fakes.directories import FakeNode, TestCluster
from tests.support.scenarios.directory_owners import NAMES, ROOM, fence, hears, owner

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


async def test_who_enters_without_the_list_gets_the_version_that_the_list_would_have(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    for number, (node, identity) in enumerate(((a, "alice"), (b, "alice"), (b, "bob"), (b, "bob"))):
        entered = await node.directory.enter(ROOM, min(number, 2), identity, lists_members=False)
        census = await a.directory.census(ROOM)
        assert (entered.is_first, entered.members, entered.version) == (number in (0, 2), [], census.version)
    await cluster.until(lambda: len(cluster.heard(ROOM)) == 3)
    assert entered.version == cluster.versions_heard(ROOM)[-1][0]
    before = await a.directory.census("silent:room")  # no notice is published there: the time is the version
    entered = await a.directory.enter("silent:room", 1, "alice", lists_members=False)
    assert before.version <= entered.version <= (await a.directory.census("silent:room")).version


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


async def test_identities_of_many_rosters_are_counted(cluster: TestCluster) -> None:
    a, b = await cluster.node("a", roster_max_bytes=400), await cluster.node("b", roster_max_bytes=400)
    empty, left = "chat:empty", "chat:left"
    assert await a.directory.identity_counts([]) == []
    await a.directory.enter(ROOM, 1, "alice", data=1)
    await b.directory.enter(ROOM, 1, "alice", entry="again")
    await b.directory.enter(ROOM, 2, "v")
    await a.directory.enter(left, 1, "alice")
    await a.directory.leave(left, 1)
    with pytest.raises(LimitExceeded):  # its bytes are recounted before
        await a.directory.enter(ROOM, 3, "carol", data="x" * 400)
    assert await b.directory.identity_counts([empty, ROOM, left, ROOM]) == [0, 2, 0, 2]
    assert [await b.directory.size(each) for each in (empty, ROOM, left)] == [
        RosterSize(0, 0),
        RosterSize(3, 2),
        RosterSize(0, 0),
    ]
    await a.directory.leave(ROOM, 1)
    assert await a.directory.identity_counts([ROOM]) == [2]
    await b.directory.leave(ROOM, 1, entry="again")
    assert await a.directory.identity_counts([ROOM]) == [1]


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


async def test_the_loser_of_a_name_is_notified_although_the_name_was_released_since(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    names = [f"desk {number}" for number in range(20)]
    for serial, name in enumerate(names):
        assert await a.claim(NAMES, name, serial, "alice")
    for name in names:
        assert await b.claim(NAMES, name, 1, "alice")
        assert await b.directory.release(NAMES, name, 1)
    await cluster.until(lambda: sorted(a.lost) == sorted((NAMES, name, at) for at, name in enumerate(names)))
    assert await a.directory.list_names(NAMES) == []


async def test_a_name_without_identity_is_never_taken_over(cluster: TestCluster) -> None:
    a, b = await cluster.node("a"), await cluster.node("b")
    assert await a.directory.claim(NAMES, "desk", 1)
    assert not await b.directory.claim(NAMES, "desk", 1, "")
    assert not await b.directory.claim(NAMES, "desk", 1, "alice")
