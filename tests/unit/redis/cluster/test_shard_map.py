"""ShardMap: the shards, from the answers of its servers; and commands to several of them at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.cluster.commands import ClusterCommands
from snorky.gateway.redis.cluster.shard_map import ShardMap
from snorky.gateway.redis.connection.resp import DialError, command
from snorky.gateway.redis.target import target_from_url
from tests.support.servers.scripted_redis import Command, ScriptedRedis

Ranges = dict[tuple[int, int], list[tuple[str, int]]]  # slots: (id, port) of the primary and its replicas


class Member:
    """A server of a cluster with scripted answers. value: to each GET; None: nothing."""

    def __init__(self) -> None:
        self.value: bytes | None = None
        self.gets = 0
        self.slots: Ranges = {}
        self.state, self.epoch = "ok", 1
        self.asked = 0
        self.server = ScriptedRedis(self._answer)

    def _answer(self, command: Command) -> bytes | None:
        if command[0] == b"GET":
            self.gets += 1
            return self.value
        if command == (b"CLUSTER", b"INFO"):
            self.asked += 1
            text = f"cluster_state:{self.state}\r\ncluster_current_epoch:{self.epoch}\r\n".encode()
            return b"$%d\r\n%b\r\n" % (len(text), text)
        answer = b"*%d\r\n" % len(self.slots)
        for (first, last), nodes in self.slots.items():
            answer += b"*%d\r\n:%d\r\n:%d\r\n" % (2 + len(nodes), first, last)
            for name, port in nodes:
                answer += b"*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$%d\r\n%b\r\n" % (port, len(name), name.encode())
        return answer


@pytest.fixture
async def members(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Member]]:
    monkeypatch.setattr(
        "snorky.gateway.redis.cluster.shard_map.ASK_TIMEOUT_S", 10.0
    )  # a busy machine may stall for a second
    async with asyncio.timeout(30.0), AsyncExitStack() as stack:
        made = [Member() for _ in range(3)]
        for each in made:
            await stack.enter_async_context(each.server)
        yield made


def cluster_of(*members: Member) -> ShardMap:
    places = ",".join(f"127.0.0.1:{each.server.port}" for each in members)
    cluster = target_from_url(f"redis+cluster://{places}").cluster
    assert cluster is not None
    return cluster


def say(members: list[Member], slots: Ranges) -> None:
    for each in members:
        each.slots = slots


async def test_a_replica_that_takes_over_is_the_same_shard(members: list[Member]) -> None:
    a, b, c = (each.server.port for each in members)
    cluster = cluster_of(*members)
    say(members, {(0, 9999): [("A", a), ("R", c)], (10000, 16383): [("B", b)]})
    await cluster.look()
    shard = cluster.by_slot(5)
    assert shard is not None and (await shard.target.resolved()).port == a
    say(members, {(0, 9999): [("R", c)], (10000, 16383): [("B", b)]})
    await cluster.look()
    assert cluster.by_slot(5) is shard and (await shard.target.resolved()).port == c
    say(members, {(0, 9999): [("R", c), ("A", a)], (10000, 16383): [("B", b)]})
    await cluster.look()
    assert cluster.by_slot(5) is shard and len(cluster.shards) == 2


async def test_a_replica_that_changes_shards_takes_none_along(members: list[Member]) -> None:
    a, b, c = (each.server.port for each in members)
    cluster = cluster_of(*members)
    say(members, {(0, 9999): [("A", a), ("R", c)], (10000, 16383): [("B", b)]})
    await cluster.look()
    before = cluster.by_slot(5), cluster.by_slot(10000)
    say(members, {(10000, 16383): [("B", b), ("R", c)], (0, 9999): [("A", a)]})
    await cluster.look()
    assert (cluster.by_slot(5), cluster.by_slot(10000)) == before
    say(members, {(10000, 16383): [("R", c)], (0, 9999): [("A", a)]})
    await cluster.look()
    assert (cluster.by_slot(5), cluster.by_slot(10000)) == before


async def test_moved_slots_are_reported_and_shards_stay(members: list[Member]) -> None:
    a, b, _ = (each.server.port for each in members)
    cluster = cluster_of(*members)
    changes: list[int] = []
    say(members, {(0, 9999): [("A", a)], (10000, 16383): [("B", b)]})

    def on_change() -> None:
        changes.append(len(cluster.shards))

    cluster.start(on_change)
    await cluster.look()
    assert changes == [2]
    await cluster.look()
    assert changes == [2], "nothing changed"
    source, destination = cluster.by_slot(5), cluster.by_slot(10000)
    say(members, {(0, 4): [("A", a)], (6, 9999): [("A", a)], (5, 5): [("B", b)], (10000, 16383): [("B", b)]})
    await cluster.look()
    assert changes == [2, 2] and cluster.by_slot(5) is destination and cluster.by_slot(6) is source
    await cluster.stop(on_change)


async def test_answer_of_a_partitioned_server_is_ignored(members: list[Member]) -> None:
    a, b, c = (each.server.port for each in members)
    cluster = cluster_of(*members)
    say(members, {(0, 16383): [("B", b)]})
    members[0].slots, members[0].state, members[0].epoch = {(0, 16383): [("A", a)]}, "fail", 9
    members[2].slots, members[2].epoch = {(0, 16383): [("C", c)]}, 2
    await cluster.look()
    shard = cluster.by_slot(0)
    assert shard is not None and shard.primary_id == "C", "the highest epoch of those whose cluster is ok"


async def test_servers_that_were_not_named_are_asked_too(members: list[Member]) -> None:
    a, b, _ = (each.server.port for each in members)
    cluster = cluster_of(members[0])
    say(members, {(0, 9999): [("A", a)], (10000, 16383): [("B", b)]})
    await cluster.look()
    members[0].server.drop()
    assert members[1].asked == 0
    await cluster.look()
    assert members[1].asked == 1


async def test_a_server_without_cluster_mode_is_reported(members: list[Member]) -> None:
    async with ScriptedRedis(lambda _: b"-ERR This instance has cluster support disabled\r\n") as single:
        cluster = target_from_url(single.url.replace("redis://", "redis+cluster://").removesuffix("/0")).cluster
        assert cluster is not None
        with pytest.raises(DialError, match=r"no server of the cluster answers.*cluster support disabled"):
            await cluster.look()


async def test_a_call_to_several_shards_fails_only_after_all_have_ended(members: list[Member]) -> None:
    a, b, _ = members
    say(members, {(0, 8191): [("A", a.server.port)], (8192, 16383): [("B", b.server.port)]})
    commander = ClusterCommands(
        cluster_of(*members), role="test", client_name="test", metrics=Metrics(), timeout_s=10.0, dial_timeout_s=2.0
    )
    b.value = b"-TRYAGAIN the slot is being moved\r\n"
    commander.start()
    try:
        asked = commander.send([command(b"GET", b"bar"), command(b"GET", b"foo")], in_order=False)  # slots 5061, 12182
        await until_asked(a, 1)
        a.server.drop()  # with the answer
        await until_asked(b, b.gets + 5)
        assert not asked.done(), "the other one is tried still"
        b.value = b"$1\r\nx\r\n"
        with pytest.raises(BrokerUnavailable) as refusal:
            await asked
        assert refusal.value.what.startswith("outcome unknown")
    finally:
        await commander.stop()


async def until_asked(member: Member, gets: int) -> None:
    while member.gets < gets:  # noqa: ASYNC110 - a server cannot be awaited; the fixture ends it
        await asyncio.sleep(0.01)
