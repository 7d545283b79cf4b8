"""What nodes count against limits together: one contract, for every supported server and for the cluster in memory."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from snorky.gateway.contracts.limits import LimitStore, LocalLimitStore, SharedUnits
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.backend import RedisBackend
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.keys import limit_owners_key, limit_settling_key, limit_units_key
from snorky.gateway.redis.limits.store import BUCKETS, RedisLimitStore
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import KINDS, RedisServer, start_server
from tests.support.servers.shared import SharedServers

PER = "cluster_connections_per_identity"


@dataclass
class CountingNode:
    """One node's store. held: what a test believes to hold, by name. die: end without freeing anything."""

    store: LimitStore
    die: Callable[[], Any]
    held: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    maximum: int = 0  # of the last take

    def on_lost(self, limit: str, name: str, units: int) -> None:
        """Give back what is lost, as a node does when it has closed its connections."""
        assert limit == PER
        self.lost += units
        self.held[name] -= units
        self.store.give_back(limit, name, units)

    async def take(self, name: str, maximum: int, units: int = 1) -> bool:
        self.maximum = maximum
        is_granted = await self.store.take(PER, name, units, maximum)
        if is_granted:
            self.held[name] += units
        return is_granted

    def give_back(self, name: str, units: int = 1) -> None:
        self.held[name] -= units
        self.store.give_back(PER, name, units)

    async def settled(self, name: str) -> None:
        """Wait until Redis has answered to all that was changed up to now."""
        await self.store.take(PER, name, 0, self.maximum)


MakeNode = Callable[..., CountingNode]


@asynccontextmanager
async def counting(url: str) -> AsyncIterator[MakeNode]:
    """Make nodes that count on one Redis; they are stopped at the end."""
    made: list[LimitStore] = []

    def make(node_id: str, *, ttl_s: float = 8.0, renew_s: float = 2.0, settle_s: float = 0.05) -> CountingNode:
        backend = RedisBackend.of(url, prefix="test", node_id=node_id, metrics=Metrics())
        commands = backend.parts.map(lambda _, each: each.limit_commands())
        every: Sequence[Commands] = list(commands)
        times = {"ttl_s": ttl_s, "renew_s": renew_s, "settle_s": settle_s}
        store = RedisLimitStore(every, commands.of, prefix="test", node_id=node_id, **times)

        async def die() -> None:
            await asyncio.gather(*(each.stop() for each in every))

        node = CountingNode(store, die)
        store.start(node.on_lost)
        made.append(store)
        return node

    try:
        yield make
    finally:
        await asyncio.gather(*(each.stop() for each in made))


@pytest.fixture(params=[*KINDS, "memory", "spread", "cluster"])
async def make(request: pytest.FixtureRequest, tmp_path: Path, shared: SharedServers) -> AsyncIterator[MakeNode]:
    if request.param == "memory":
        units = SharedUnits()

        def in_memory(node_id: str, *, ttl_s: float = 8.0, renew_s: float = 2.0) -> CountingNode:
            store = LocalLimitStore(units, node_id)

            async def die() -> None:
                store.die()

            node = CountingNode(store, die)
            store.start(node.on_lost)
            return node

        yield in_memory
        return
    async with shared.lend(request.param) as server, counting(server.url) as made:
        yield made


# -- every kind ------------------------------------------------------------------------------------------------


async def test_nodes_together_never_take_more_than_the_maximum(make: MakeNode) -> None:
    nodes = [make(f"n{number}") for number in range(3)]
    for _ in range(3):
        granted = await asyncio.gather(*(node.take("ann", 10) for _ in range(8) for node in nodes))
        assert sum(granted) == 10 == sum(node.held["ann"] for node in nodes)
        for node in nodes:
            while node.held["ann"]:
                node.give_back("ann")
            await node.settled("ann")


async def test_names_are_counted_apart(make: MakeNode) -> None:
    a = make("a")
    assert await a.take("ann", 1)
    assert await a.take("bob", 1)
    assert not await a.take("ann", 1)
    assert not await a.store.take("other", "ann", 2, 1)
    assert await a.store.take("other", "ann", 1, 1)


async def test_without_a_maximum_all_is_granted(make: MakeNode) -> None:
    a, b = make("a"), make("b")
    assert await a.take("ann", 0, 1000)
    assert await b.take("ann", 0, 1000)
    assert not await b.take("ann", 2000, 1)


async def test_a_refused_take_leaves_nothing_behind(make: MakeNode) -> None:
    a, b = make("a"), make("b")
    assert await a.take("ann", 5, 3)
    assert not await b.take("ann", 5, 3)
    await eventually(lambda: a.take("ann", 5, 2), within_s=30, what="`b` has given back what it could not use")


async def test_a_cancelled_take_is_given_back(make: MakeNode) -> None:
    a, b = make("a"), make("b")
    taking = asyncio.ensure_future(a.store.take(PER, "ann", 1, 1))
    await asyncio.sleep(0)
    if not taking.cancel():  # in memory it is done at once
        a.store.give_back(PER, "ann", 1)
    await asyncio.gather(taking, return_exceptions=True)
    await a.settled("ann")
    await a.settled("ann")  # the first one may share the call of the take
    assert await b.take("ann", 1)


async def test_a_stopped_node_frees_its_units_at_once(make: MakeNode) -> None:
    a, b = make("a"), make("b")
    assert await a.take("ann", 1)
    await a.store.stop()
    assert await b.take("ann", 1)


async def test_the_units_of_a_dead_node_become_free(make: MakeNode) -> None:
    a, b = make("a", ttl_s=1.0, renew_s=0.25), make("b", ttl_s=1.0, renew_s=0.25)
    assert await a.take("ann", 1)
    await a.die()
    await eventually(lambda: b.take("ann", 1), within_s=30, what="Redis frees the units")


async def test_nodes_learn_the_demands_of_the_others(make: MakeNode) -> None:
    nodes = [make(f"n{number}") for number in range(3)]
    ann, bob = (PER, "ann"), (PER, "bob")
    for node in nodes:
        for name in map(str, range(20)):  # in every bucket
            await node.take(name, 0)
    for node in nodes:
        for name in map(str, range(20)):
            await node.settled(name)
    a, b, c = (node.store for node in nodes)
    assert [store.nodes for store in (a, b, c)] == [3, 3, 3]
    assert await a.exchange({ann: 1.5, bob: 1.0}) == {ann: 0.0, bob: 0.0}
    assert await b.exchange({ann: 2.0}) == {ann: 1.5}
    assert await c.exchange({ann: 4.0, bob: 4.0}) == {ann: 3.5, bob: 1.0}
    assert await a.exchange({bob: 1.0}) == {bob: 4.0}
    assert await c.exchange({ann: 4.0}) == {ann: 2.0}, "a report takes the place of the last one"
    assert await a.exchange({}) == {}
    assert await b.exchange({bob: 1.0}) == {bob: 0.0}
    await nodes[1].die()
    with pytest.raises(BrokerUnavailable) if not isinstance(b, LocalLimitStore) else nullcontext():
        await b.exchange({ann: 1.0})


# -- Redis -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["valkey", "redis", "fakeredis", "cluster"])
async def server(request: pytest.FixtureRequest, shared: SharedServers) -> AsyncIterator[Any]:
    async with shared.lend(request.param) as running:
        yield running


async def expire(url: str, node_id: str) -> None:
    """Remove what a node counts, as Redis does when the node did not renew it in time."""
    async with the_redis(url) as redis:
        keys = [f"test:{{limits {number}}}:units:{node_id}" for number in range(BUCKETS)]
        for key in keys:
            await redis.delete(key)


@asynccontextmanager
async def the_redis(url: str) -> AsyncIterator[Any]:
    redis: Any
    if "+cluster" in url:
        from redis.asyncio.cluster import RedisCluster

        host, _, port = url.removeprefix("redis+cluster://").split(",")[0].partition(":")
        redis = RedisCluster(host=host, port=int(port))
    else:
        redis = Redis.from_url(url)
    try:
        yield redis
    finally:
        await redis.aclose()


async def test_units_are_renewed(server: Any) -> None:
    async with counting(server.url) as make:
        a, b = make("a", ttl_s=3.0, renew_s=0.1), make("b", ttl_s=3.0, renew_s=0.1)
        assert await a.take("ann", 1)
        for _ in range(40):
            await asyncio.sleep(0.1)  # longer than the units would live without renewal
            assert not await b.take("ann", 1)


async def test_what_other_nodes_took_meanwhile_is_lost(server: Any) -> None:
    async with counting(server.url) as make:
        a, b = make("a", renew_s=3600.0), make("b", renew_s=3600.0)
        assert await a.take("ann", 3, 2)
        assert await b.take("ann", 3)
        await expire(server.url, "a")
        assert await b.take("ann", 3)
        await a.settled("ann")
        assert (a.held["ann"], b.held["ann"], a.lost) == (1, 2, 1)
        await a.settled("ann")
        assert a.lost == 1, "what has been given back is not lost again"
        assert not await a.take("ann", 3)


async def test_after_a_loss_of_data_the_same_units_count(server: Any) -> None:
    async with counting(server.url) as make:
        a, b = make("a", settle_s=3.0), make("b", settle_s=3.0)
        assert await a.take("ann", 3, 2)
        assert await b.take("bob", 3, 1)
        async with the_redis(server.url) as redis:
            await redis.flushall()
        taking = asyncio.ensure_future(b.take("ann", 3, 2))  # `b` does not know yet what `a` has
        await b.settled("bob")
        await a.settled("ann")
        assert not taking.done(), "no take is refused before all nodes could write again"
        assert not await taking
        assert await b.take("ann", 3, 1)
        assert not await b.take("ann", 3, 1)
        assert not await a.take("ann", 3, 1)
        assert a.lost == b.lost == 0


async def test_an_unreachable_redis_grants_nothing(tmp_path: Path) -> None:
    async with start_server("valkey", tmp_path) as server, counting(server.url) as make:
        assert isinstance(server, RedisServer)
        a, b = make("a"), make("b")
        assert await a.take("ann", 3)
        server.freeze()
        with pytest.raises(BrokerUnavailable):
            await b.take("ann", 3)
        a.give_back("ann")
        server.thaw()
        await eventually(lambda: may(b.take("ann", 1)), within_s=30, what="the unit is free again")
        assert not await a.take("ann", 1)


async def may(taking: Any) -> bool:
    try:
        return bool(await taking)
    except BrokerUnavailable:
        return False


async def test_a_call_that_arrives_late_changes_nothing(server: Any) -> None:
    async with counting(server.url) as make:
        a, b = make("a"), make("b")
        assert await a.take("ann", 1)
        (commands,) = [
            each.limit_commands()
            for each in RedisBackend.of(server.url, prefix="test", node_id="x", metrics=Metrics()).parts
        ]
        commands.start()
        number = next(at for at in range(BUCKETS) if a.store._of(f"{PER} ann") is a.store._buckets[at])  # type: ignore[attr-defined]
        owners, settling = limit_owners_key("test", number), limit_settling_key("test", number)
        others = [owner for owner in (b"a", b"b") if owner != b"a"]
        keys = [owners, settling, limit_units_key("test", number, "a"), limit_units_key("test", number, "b")]
        head = [b"a", b"8000", b"50", b"1", b"", b"1", *others]
        ((status, *_),) = await Scripts(commands).run(Call("count", keys, head))  # the first call, which began empty
        await commands.stop()
        assert status == b"late"
        assert not await b.take("ann", 1)


async def test_a_renewal_writes_expired_units_again(server: Any) -> None:
    async with counting(server.url) as make:
        a, b = make("a", renew_s=0.2), make("b")
        assert await a.take("ann", 1)
        async with the_redis(server.url) as redis:
            keys = [limit_units_key("test", number, "a") for number in range(BUCKETS)]
            await expire(server.url, "a")

            async def is_written() -> bool:
                return any([await redis.hexists(key, f"{PER} ann") for key in keys])

            await eventually(is_written, within_s=30, what="`a` has written its units again")
        assert not await b.take("ann", 1)


async def test_demands_expire(server: Any) -> None:
    async with counting(server.url) as make:
        a, b = make("a"), make("b")
        for node in (a, b):
            for name in map(str, range(20)):
                await node.take(name, 0)
        for name in map(str, range(20)):
            await a.settled(name)
        await b.store.exchange({(PER, "ann"): 5.0})
        assert await a.store.exchange({(PER, "ann"): 1.0}) == {(PER, "ann"): 5.0}
        await b.die()

        async def is_expired() -> bool:
            return await a.store.exchange({(PER, "ann"): 1.0}) == {(PER, "ann"): 0.0}

        # the demand ends by itself after 3 s; after 10 s the whole node is taken for dead
        await eventually(is_expired, within_s=8, what="the demand of a dead node expires")


async def test_units_are_not_current_while_they_cannot_be_renewed(tmp_path: Path) -> None:
    async with start_server("valkey", tmp_path) as server, counting(server.url) as make:
        assert isinstance(server, RedisServer)
        a = make("a", ttl_s=1.0, renew_s=0.2)
        assert not a.store.is_current(PER, "ann")
        assert await a.take("ann", 1)

        async def is_past() -> bool:
            return not a.store.is_current(PER, "ann")

        async def is_current() -> bool:
            return a.store.is_current(PER, "ann")

        await eventually(is_current, within_s=30, what="its units are renewed in time")
        server.freeze()
        await eventually(is_past, within_s=30, what="its units may have expired")
        server.thaw()
        await eventually(is_current, within_s=30, what="the units are renewed")


async def test_many_names_are_written_again_in_several_calls(server: Any) -> None:
    async with counting(server.url) as make:
        a, b = make("a"), make("b")
        names = [f"user {number}" for number in range(5000)]
        assert all(await asyncio.gather(*(a.take(name, 1) for name in names)))
        await expire(server.url, "a")
        assert all(await asyncio.gather(*(a.take(f"new {number}", 1) for number in range(100))))
        assert not any(await asyncio.gather(*(b.take(name, 1) for name in names)))


async def test_no_other_node_takes_units_that_are_written_again_in_several_calls(server: Any) -> None:
    async with counting(server.url) as make:
        a, b = make("a", renew_s=3600.0), make("b", renew_s=3600.0)
        names = [
            f"user {number}" for number in range(6000)
        ]  # in many calls, between which the other node can take units
        assert all(await asyncio.gather(*(a.take(name, 1) for name in names)))
        assert isinstance(a.store, RedisLimitStore)
        for bucket in a.store._buckets:
            if bucket._task is not None:
                await bucket._task  # its answer would register the node again
            bucket._is_registered = False  # as after a call whose outcome is unknown
            bucket._counts.pop(next(iter(bucket._counts)))  # that Redis has nevertheless
        a.store._renew()
        taken = await asyncio.gather(*(b.take(name, 1) for name in names[1000:]))
        assert (taken.count(True), a.lost) == (0, 0)
        await asyncio.gather(*(a.settled(name) for name in names[-100:]))
        freed = await asyncio.gather(*(b.take(name, 1) for name in names))
        assert freed.count(True) == BUCKETS, "what it does not count any more is free"
