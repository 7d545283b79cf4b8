"""The control orders of a cluster: one contract, for every supported server and for the cluster in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from snorky.gateway.contracts.control import ORDER_MAX_BYTES, ControlLog, ControlOrder, LocalControlLog
from snorky.gateway.errors import BrokerUnavailable, LimitExceeded
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.backend import parts_of
from snorky.gateway.redis.multi.control import SpreadControlLog
from snorky.gateway.redis.multi.hashing import targets_of
from snorky.gateway.testing.control import MemoryControlLog, SharedOrders
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.redis_servers import KINDS, RedisServer, start_server

ORDERS, LEASES = "test:{nodes}::orders", "test:{nodes}::leases"


class Seen:
    """Records the orders that a node receives, and how often it may have missed some; tests can wait for both."""

    def __init__(self) -> None:
        self.orders: list[ControlOrder] = []
        self.missed = 0
        self._changed = asyncio.Event()

    def on_orders(self, orders: Sequence[ControlOrder]) -> None:
        self.orders += orders
        self._changed.set()

    def on_missed(self) -> None:
        self.missed += 1
        self._changed.set()

    @property
    def ids(self) -> list[str]:
        return [order.id for order in self.orders]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30.0):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def told(self, order_id: str) -> None:
        await self.until(lambda: order_id in self.ids)


def begin(log: ControlLog) -> Seen:
    seen = Seen()
    log.begin(seen.on_orders, seen.on_missed)
    return seen


def order(order_id: str, **fields: str) -> ControlOrder:
    return ControlOrder(order_id, "disconnect", **(fields or {"identity": "ann"}))  # type: ignore[arg-type]


MakeLog = Callable[..., ControlLog]


@asynccontextmanager
async def logs(url: str) -> AsyncIterator[MakeLog]:
    """Make the logs of several nodes on one server; they are stopped at the end."""
    made: list[ControlLog] = []

    def make(node_id: str = "a", *, keep_s: float = 60.0, orders_max: int = 1000) -> ControlLog:
        made_by = [parts_of(target, prefix="test", node_id=node_id, metrics=Metrics()) for target in targets_of(url)]
        each = [part.control_log(keep_s=keep_s, orders_max=orders_max) for part in made_by]
        made.append(each[0] if len(each) == 1 else SpreadControlLog(each, keep_s=keep_s))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            await each.stop()


@pytest.fixture(params=[*KINDS, "memory", "spread", "cluster"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeLog]:
    if request.param == "memory":
        shared = SharedOrders()
        yield lambda node_id="a": MemoryControlLog(shared, node_id)
        return
    starting = ClusterLab("redis", tmp_path) if request.param == "cluster" else start_server(request.param, tmp_path)
    async with starting as server, logs(server.url) as made:
        yield made


async def ready(log: ControlLog, seen: Seen, order_id: str = "ready") -> None:
    """Wait until a node reads."""
    await log.add(order(order_id))
    await seen.told(order_id)


# -- every kind ------------------------------------------------------------------------------------------------


async def test_every_node_is_told_each_order_in_order_by_one_redis(make: MakeLog) -> None:
    a, b = make("a"), make("b")
    seen_a, seen_b = begin(a), begin(b)
    await ready(a, seen_a)
    await seen_b.told("ready")
    for number in range(5):
        await (a if number % 2 else b).add(order(f"o{number}", identity=f"user {number}"))
    for seen in (seen_a, seen_b):
        await seen.told("o4")
        expected = [order("ready"), *(order(f"o{number}", identity=f"user {number}") for number in range(5))]
        found = list(dict.fromkeys(seen.orders))  # several Redis report each, and Control takes it once
        if isinstance(a, SpreadControlLog):  # of several Redis, one may be later than another
            for each in expected:
                await seen.told(each.id)
            found = list(dict.fromkeys(seen.orders))
            found.sort(key=lambda each: each.id)
            expected.sort(key=lambda each: each.id)
        assert found == expected
        assert seen.missed == 0


async def test_results_are_listed_by_node(make: MakeLog) -> None:
    a, b = make("a"), make("b")
    seen_a, seen_b = begin(a), begin(b)
    await ready(a, seen_a)
    await seen_b.told("ready")
    assert await b.acknowledged("ready") == {}
    await a.acknowledge("ready", b"3")
    assert await b.acknowledged("ready") == {"a": b"3"}
    await b.acknowledge("ready", b"0")
    assert await a.acknowledged("ready") == {"a": b"3", "b": b"0"}
    assert await a.acknowledged("other") == {}


@pytest.mark.parametrize("text", ["a:b", "{x}", "*", "Ærøskøbing", " ", "\\", '"', "x" * 255])
async def test_orders_are_taken_as_they_are(make: MakeLog, text: str) -> None:
    log = make()
    seen = begin(log)
    given = ControlOrder(
        "1", "unsubscribe", service="s", identity=text, connection_id=text, channel=f'"{text}"', code=4500, reason=text
    )
    await ready(log, seen)
    await log.add(given)
    await seen.told("1")
    found = [each for each in seen.orders if each.id != "ready"]  # another Redis may report that one later
    assert list(dict.fromkeys(found)) == [given]


async def test_an_order_that_is_too_large_is_refused(make: MakeLog) -> None:
    log = make()
    begin(log)
    with pytest.raises(LimitExceeded, match=f"at most {ORDER_MAX_BYTES} bytes"):
        await log.add(order("1", reason="x" * ORDER_MAX_BYTES))


async def test_the_log_of_one_process_reports_and_answers() -> None:
    log = LocalControlLog("n")
    seen = begin(log)
    assert await log.add(order("1")) == {"n"}
    await seen.told("1")
    assert await log.acknowledged("1") == {}
    await log.acknowledge("1", b"2")
    assert await log.acknowledged("1") == {"n": b"2"}
    assert await log.acknowledged("1") == {}, "each result is read once"
    await log.stop()
    assert await log.add(order("2")) == {"n"}
    await asyncio.sleep(0)
    assert seen.ids == ["1"]


# -- Redis only ------------------------------------------------------------------------------------------------


async def test_nodes_with_a_lease_are_named_also_for_a_while_after_it_expired(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, logs(server.url) as make:
        log = make("a")
        begin(log)
        async with server.client() as redis:
            await redis.zadd(LEASES, {"a:i1": time.time() * 1000 + 8000, "b.b:tag-i2": time.time() * 1000 - 8000})
        assert await log.add(order("1")) == {"a", "b.b"}


async def test_a_new_node_is_not_told_of_orders_from_before_its_start(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, logs(server.url) as make:
        a = make("a")
        seen_a = begin(a)
        await ready(a, seen_a, "old")
        await asyncio.sleep(0.05)  # Redis' clock is compared in milliseconds
        b = make("b")
        seen_b = begin(b)
        await a.add(order("new"))
        await seen_b.told("new")
        assert seen_b.ids == ["new"]


async def test_orders_given_while_a_node_could_not_read_yet_are_reported(tmp_path: Path) -> None:
    """It already has connections then: Redis was not reachable when it started."""
    async with RedisServer("redis", tmp_path) as server, logs(server.url) as make:
        a, b = make("a"), make("b")
        await ready(a, begin(a), "before")
        await asyncio.sleep(0.05)  # as above
        server.freeze()
        seen_b = begin(b)
        given = asyncio.create_task(a.add(order("meanwhile")))
        await asyncio.sleep(0.2)
        server.thaw()
        await given
        await seen_b.told("meanwhile")
        assert seen_b.ids == ["meanwhile"]


async def test_a_node_that_was_cut_off_is_told_later(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, logs(server.url) as make:
        a, b = make("a"), make("b")
        seen_a, seen_b = begin(a), begin(b)
        await ready(a, seen_a)
        await seen_b.told("ready")
        for cut in range(3):
            async with server.client() as redis:
                await redis.client_kill_filter(_type="normal", skipme=True)
            for number in range(50):
                try:
                    await a.add(order(f"o{cut}.{number}"))
                except BrokerUnavailable:
                    await a.add(order(f"o{cut}.{number}"))
            for seen in (seen_a, seen_b):
                await seen.told(f"o{cut}.49")
        assert len(set(seen_b.ids)) == 151 and seen_b.missed == 0


async def test_old_orders_are_removed_but_not_the_newest_one(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, logs(server.url) as make:
        log = make("a", keep_s=0.3)
        seen = begin(log)
        for number in range(3):
            await log.add(order(f"old {number}"))
            await seen.told(f"old {number}")  # before it can be removed
        await asyncio.sleep(0.4)
        await log.add(order("new"))
        async with server.client() as redis:
            assert [fields[b"id"] for _, fields in await redis.xrange(ORDERS)] == [b"old 2", b"new"]
            assert 0 < await redis.pttl(ORDERS) <= 86_400_000
        await seen.told("new")
        assert seen.ids == ["old 0", "old 1", "old 2", "new"] and seen.missed == 0


async def test_a_node_is_notified_if_orders_were_removed_before_it_read_them(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, logs(server.url) as make:
        log = make("a")
        seen = begin(log)
        await ready(log, seen)
        async with server.client() as redis, redis.pipeline() as pipeline:
            entry = (await redis.xrange(ORDERS))[0][1]
            data = entry[b"order"].replace(b"ready", b"later")
            await pipeline.delete(ORDERS).xadd(ORDERS, {**entry, b"id": "later", b"order": data}, id="3-0").execute()
        await seen.told("later")
        assert seen.missed == 1
        await ready(log, seen, "next")
        assert seen.missed == 1 and seen.ids == ["ready", "later", "next"]


async def test_orders_are_refused_and_none_is_discarded_when_too_many_are_kept(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, logs(server.url) as make:
        log = make("a", orders_max=3, keep_s=3.0)
        seen = begin(log)
        for number in range(3):
            await log.add(order(f"o{number}"))
        with pytest.raises(LimitExceeded, match="Too many control orders"):
            await log.add(order("refused"))
        await seen.told("o2")
        await asyncio.sleep(3.1)
        await log.add(order("later"))
        await seen.told("later")
        assert seen.ids == ["o0", "o1", "o2", "later"] and seen.missed == 0


async def test_more_orders_than_one_read_are_reported_in_order(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, logs(server.url) as make:
        log, expected = make("a", orders_max=5000), [f"o{number}" for number in range(1200)]
        seen = begin(log)
        await asyncio.gather(*(log.add(order(each)) for each in expected))
        await seen.told("o1199")
        assert seen.ids == expected


@pytest.mark.parametrize("rest", [0, 2])
async def test_after_redis_lost_its_newest_orders_new_ones_are_reported(tmp_path: Path, rest: int) -> None:
    """A failover to a replica that had only some of them: numbers are used again."""
    async with start_server("redis", tmp_path) as server, logs(server.url) as make:
        log = make("a")
        seen = begin(log)
        for number in range(5):
            await log.add(order(f"o{number}"))
        await seen.told("o4")
        async with server.client() as redis:
            entries = (await redis.xrange(ORDERS))[:rest]
            pipeline = redis.pipeline()
            pipeline.delete(ORDERS)
            for entry_id, fields in entries:
                pipeline.xadd(ORDERS, fields, id=entry_id)
            await pipeline.execute()
        for number in range(5, 12):
            await log.add(order(f"o{number}"))
        await seen.told("o11")
        assert list(dict.fromkeys(seen.ids)) == [f"o{number}" for number in range(12)]
        assert seen.missed == 0


async def test_an_order_of_a_newer_node_is_passed_over(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, logs(server.url) as make:
        log = make()
        seen = begin(log)
        await ready(log, seen)
        async with server.client() as redis:
            for number, data in ((2, b'{"id": "x", "command": "dance"}'), (3, b"\xff")):
                await redis.xadd(ORDERS, {"id": "x", "at": int(time.time() * 1000), "order": data}, id=f"{number}-0")
        await ready(log, seen, "next")
        assert seen.ids == ["ready", "next"]


async def test_orders_of_a_clock_that_was_ahead_are_removed(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, logs(server.url) as make:
        log = make("a", orders_max=2)
        async with server.client() as redis:
            for number in (1, 2):
                ahead = {"id": f"o{number}", "at": int(time.time() * 1000) + 3_600_000, "order": b"{}"}
                await redis.xadd(ORDERS, ahead, id=f"{number}-0")
        seen = begin(log)
        await log.add(order("new"))
        await seen.told("new")


async def test_results_expire(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, logs(server.url) as make:
        log = make()
        begin(log)
        await log.acknowledge("1", b"1")
        async with server.client() as redis:
            assert 0 < await redis.pttl("test:{nodes}::order:1") <= 5000


async def test_without_redis_orders_fail_and_reading_goes_on_later(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, logs(server.url) as make:
        a = make()
        seen = begin(a)
        await ready(a, seen)
        await server.stop()
        for asked in (a.add(order("1")), a.acknowledge("1", b"1"), a.acknowledged("1")):
            with pytest.raises(BrokerUnavailable):
                await asked
        await server.start()
        await ready(a, seen, "again")


async def test_one_of_several_redis_suffices(tmp_path: Path) -> None:
    async with (
        RedisServer("redis", tmp_path) as one,
        RedisServer("redis", tmp_path) as two,
        logs(f"{one.url},{two.url}") as make,
    ):
        a, b = make("a"), make("b")
        seen_a, seen_b = begin(a), begin(b)
        await ready(a, seen_a)
        await seen_b.told("ready")
        for server in (one, two):
            await server.stop()
            began_s = time.monotonic()
            await a.add(order(server.url))
            await seen_b.told(server.url)
            await b.acknowledge(server.url, b"7")
            assert await a.acknowledged(server.url) == {"b": b"7"}
            assert time.monotonic() - began_s < 4.0, "the other one is not waited for"  # which takes 5 s
            await server.start()
            await ready(a, seen_a, f"ready after {server.url}")
        assert seen_a.missed == seen_b.missed == 0


async def test_orders_of_one_redis_that_another_one_reported_are_not_missed(tmp_path: Path) -> None:
    async with (
        RedisServer("redis", tmp_path) as one,
        RedisServer("redis", tmp_path) as two,
        logs(f"{one.url},{two.url}") as make,
    ):
        log = make("a")
        seen = begin(log)
        await ready(log, seen)
        async with one.client() as redis:  # as after a time in which this node did not reach this Redis
            entries = await redis.xrange(ORDERS)
            await redis.delete(ORDERS)
            await redis.xadd(ORDERS, {**entries[0][1], b"id": "another"}, id="9-0")
        await ready(log, seen, "next")
        await asyncio.sleep(0.5)
        assert seen.missed == 0
