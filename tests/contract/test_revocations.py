"""The list of revocations: one contract, for every supported server and for the list of a single process."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from snorky.gateway.contracts.revocations import Kind, LocalRevocations, Revocation, Revocations
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.backend import parts_of
from snorky.gateway.redis.connection.timeouts import DEFAULT_TIMEOUTS
from snorky.gateway.redis.multi.hashing import targets_of
from snorky.gateway.redis.multi.revocations import SpreadRevocations
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import KINDS, RedisServer, start_server
from tests.support.servers.shared import SharedServers

MakeList = Callable[..., Any]


class Seen:
    """Records a node's notifications; tests can wait for them."""

    def __init__(self) -> None:
        self.revocations: list[Revocation] = []
        self._changed = asyncio.Event()

    def __call__(self, revocation: Revocation) -> None:
        self.revocations.append(revocation)
        self._changed.set()

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.revocations]

    async def until(self, name: str, *, times: int = 1, within_s: float = 30.0) -> None:
        async with asyncio.timeout(within_s):
            while self.names.count(name) < times:
                self._changed.clear()
                await self._changed.wait()


async def times_read(client: Any) -> int:
    return int((await client.info("commandstats"))["cmdstat_zrange"]["calls"])


@asynccontextmanager
async def lists(url: str) -> AsyncIterator[MakeList]:
    """Make lists of several nodes on one server; they are stopped at the end."""
    made: list[Revocations] = []

    def make(*, keep_s: float = 3600.0, interval_s: float = 0.05) -> Revocations:
        parts = [parts_of(target, prefix="test", node_id="n", metrics=Metrics()) for target in targets_of(url)]
        each = [part.revocations(keep_s=keep_s, interval_s=interval_s) for part in parts]
        made.append(each[0] if len(each) == 1 else SpreadRevocations(each))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            await each.stop()


@pytest.fixture(params=[*KINDS, "local", "spread", "cluster"])
async def revocations(request: pytest.FixtureRequest, shared: SharedServers) -> AsyncIterator[Revocations]:
    if request.param == "local":
        yield LocalRevocations()
        return
    async with shared.lend(request.param) as server, lists(server.url) as make:
        yield make()


async def test_an_added_revocation_is_listed_and_notified(revocations: Revocations) -> None:
    seen = Seen()
    await revocations.begin(seen)
    began_s = time.time()
    assert await revocations.find("alice", "t-1") == []
    await revocations.add(Kind.IDENTITY, "alice")
    await revocations.add(Kind.TOKEN, "t-1")
    await revocations.add(Kind.RECONNECT, "bob")
    found = await revocations.find("alice", "t-1")
    assert [(each.kind, each.name) for each in found] == [(Kind.IDENTITY, "alice"), (Kind.TOKEN, "t-1")]
    assert all(began_s - 0.01 <= each.at_s <= time.time() + 0.01 for each in found)
    await seen.until("bob")
    assert seen.names == ["alice", "t-1", "bob"], "in order, each once"


async def test_an_entry_is_dated_no_earlier_than_a_time_that_was_asked_before(revocations: Revocations) -> None:
    for number in range(50):  # some of them within the same millisecond
        asked_s = await revocations.now_s()
        await revocations.add(Kind.IDENTITY, f"user {number}")
        (found,) = await revocations.find(f"user {number}", None)
        assert time.time() - 30 < asked_s <= found.at_s


async def test_a_herd_of_logins_is_answered(revocations: Revocations) -> None:
    await revocations.add(Kind.IDENTITY, "user 7")
    found = await asyncio.gather(*(revocations.find(f"user {number}", "t") for number in range(500)))
    assert [number for number, revoked in enumerate(found) if revoked] == [7]


async def test_an_identity_and_a_token_of_the_same_name_are_two_things(revocations: Revocations) -> None:
    await revocations.add(Kind.TOKEN, "alice")
    await revocations.add(Kind.DISCONNECT, "alice")
    assert await revocations.find("alice", "other") == []
    assert await revocations.find("alice", None) == []


async def test_a_repeated_revocation_is_notified_again_with_a_new_date(revocations: Revocations) -> None:
    seen = Seen()
    await revocations.begin(seen)
    await revocations.add(Kind.IDENTITY, "alice")
    await seen.until("alice")
    await revocations.add(Kind.IDENTITY, "alice")
    await seen.until("alice", times=2)
    await revocations.add(Kind.IDENTITY, "fence")
    await seen.until("fence")
    assert seen.names == ["alice", "alice", "fence"]
    first, second, _ = seen.revocations
    assert second.at_s >= first.at_s


@pytest.mark.parametrize("name", ["a:b", "t:1", "{x}", "*", "Ærøskøbing", " ", "(1", "+inf", "x" * 255])
async def test_names_are_taken_as_they_are(revocations: Revocations, name: str) -> None:
    seen = Seen()
    await revocations.begin(seen)
    await revocations.add(Kind.IDENTITY, name)
    assert [each.name for each in await revocations.find(name, None)] == [name]
    await seen.until(name)


# -- Redis only ------------------------------------------------------------------------------------------------


async def test_a_node_is_notified_only_of_later_revocations(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, lists(server.url) as make:
        first, second = make(), make()
        await first.add(Kind.DISCONNECT, "old")
        seen = Seen()
        await second.begin(seen)
        await first.add(Kind.DISCONNECT, "new")
        await seen.until("new")
        assert seen.names == ["new"]


async def test_a_node_that_was_cut_off_reads_missed_revocations(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, lists(server.url) as make:
        node, other, seen = make(), make(), Seen()
        await node.begin(seen)
        for _ in range(3):
            async with server.client() as redis:
                await redis.client_kill_filter(_type="normal", skipme=True)
            await other.begin(Seen())  # reconnects
            for number in range(50):
                try:
                    await other.add(Kind.TOKEN, f"t-{number}")
                except BrokerUnavailable:
                    await other.add(Kind.TOKEN, f"t-{number}")
        await seen.until("t-49")


async def test_entries_do_not_depend_on_a_clock_that_is_set_back(tmp_path: Path) -> None:
    """After a failover the new primary's clock may be behind: new revocations must still sort after known ones."""
    async with start_server("redis", tmp_path) as server, lists(server.url) as make:
        node, seen = make(), Seen()
        async with server.client() as redis:
            ahead_ms = (time.time() + 30) * 1000
            await redis.zadd("test:{revocations}", {"d:ahead": ahead_ms})
            await node.begin(seen)
            await node.add(Kind.DISCONNECT, "bob")
            await seen.until("bob")
            assert await redis.zscore("test:{revocations}", "d:bob") > ahead_ms
            await redis.delete("test:{revocations}")  # a primary without revocations, whose clock is 30 s behind
            await node.add(Kind.DISCONNECT, "carol")
        await seen.until("carol")


async def test_revocations_end_when_all_affected_tokens_have_expired(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, lists(server.url) as make:
        node = make(keep_s=60.0)
        async with server.client() as redis:
            await redis.zadd("test:{revocations}", {"i:old": (time.time() - 61) * 1000})
            await node.add(Kind.IDENTITY, "new")
            assert await redis.zrange("test:{revocations}", 0, -1) == [b"i:new"]
            assert 0 < await redis.pttl("test:{revocations}") <= 60_000


async def test_more_revocations_than_one_read_are_notified_in_order(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, lists(server.url) as make:
        node, seen = make(), Seen()
        await node.begin(seen)
        entries = {f"t:{number}": (time.time() * 1000) + number for number in range(3500)}
        async with server.client() as redis:
            await redis.zadd("test:{revocations}", entries)
        await seen.until("3499")
        assert seen.names == [str(number) for number in range(3500)]


async def test_without_redis_nothing_is_taken_for_granted(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, lists(server.url) as make:
        node, late, seen = make(), make(), Seen()
        await node.begin(seen)
        await server.stop()
        for asked in (node.find("alice", None), node.add(Kind.IDENTITY, "alice"), late.begin(Seen())):
            with pytest.raises(BrokerUnavailable):
                await asked
        await server.start()
        await late.begin(Seen())
        await late.add(Kind.IDENTITY, "alice")
        await seen.until("alice")


async def test_an_entry_of_a_newer_node_is_passed_over(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, lists(server.url) as make:
        node, seen = make(), Seen()
        await node.begin(seen)
        async with server.client() as redis:
            strange: dict[Any, float] = {"z:what": time.time() * 1000, b"\xff": time.time() * 1000}
            await redis.zadd("test:{revocations}", strange)
        await node.add(Kind.IDENTITY, "alice")
        await seen.until("alice")
        assert seen.names == ["alice"]


async def test_before_the_first_login_nothing_is_asked(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, lists(server.url) as make:
        make()
        async with server.client() as redis:
            assert len(await redis.client_list()) == 1, "only ours"


async def test_a_node_without_clients_reads_seldom_and_a_login_first_reads_what_it_missed(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, lists(server.url) as make, server.client() as client:
        node, other = make(), make()
        seen, has_clients = Seen(), False
        node.read_while(lambda: has_clients)
        await node.begin(seen)
        await eventually(lambda: is_idle(node), within_s=30, what="the node reads seldom")
        await other.add(Kind.DISCONNECT, "bob")
        before = await times_read(client)
        await asyncio.sleep(0.5)  # ten intervals: absence over time is tested
        assert await times_read(client) == before and not seen.names
        await asyncio.gather(*(node.begin(seen) for _ in range(5)))
        assert seen.names == ["bob"], "it is not reported after the logins"
        assert await times_read(client) == before + 1
        has_clients = True
        await other.add(Kind.DISCONNECT, "carol")
        await seen.until("carol")
        assert not node._is_idle


async def test_a_connection_ends_the_wait_and_a_login_meanwhile_waits_for_the_read(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, lists(server.url) as make:
        node, other, seen = make(), make(), Seen()
        node.read_while(lambda: False)
        await node.begin(seen)
        await eventually(lambda: is_idle(node), within_s=30, what="the node reads seldom")
        await other.add(Kind.DISCONNECT, "bob")
        node.read_while(lambda: True)
        node._interval_s = 3600.0
        node.hurry()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await node.begin(seen)
        assert seen.names == ["bob"]


async def test_what_a_node_missed_is_read_later_if_redis_did_not_answer(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, lists(server.url) as make:
        node, other, seen, has_clients = make(), make(), Seen(), False
        node.read_while(lambda: has_clients)
        await node.begin(seen)
        await eventually(lambda: is_idle(node), within_s=30, what="the node reads seldom")
        await other.add(Kind.TOKEN, "t")
        server.freeze()
        with pytest.raises(BrokerUnavailable):
            await node.begin(seen)
        has_clients = True
        server.thaw()
        await seen.until("t")


async def test_logins_share_a_read_that_fails_and_the_next_login_reads_again(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, lists(server.url) as make:
        node, other, seen = make(), make(), Seen()
        node.read_while(lambda: False)
        await node.begin(seen)
        await eventually(lambda: is_idle(node), within_s=30, what="the node reads seldom")
        await other.add(Kind.DISCONNECT, "bob")
        node._interval_s = 3600.0  # only logins read
        await asyncio.sleep(0.2)  # the interval that has begun is over
        server.freeze()
        began_s = time.monotonic()
        failed = await asyncio.gather(*(node.begin(seen) for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in failed] == [BrokerUnavailable] * 5
        assert time.monotonic() - began_s < 2 * DEFAULT_TIMEOUTS.read_timeout_s
        server.thaw()
        await node.begin(seen)
        assert seen.names == ["bob"]


async def test_a_login_that_is_cancelled_leaves_the_read_to_the_others(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, lists(server.url) as make:
        node, other, seen = make(), make(), Seen()
        node.read_while(lambda: False)
        await node.begin(seen)
        await eventually(lambda: is_idle(node), within_s=30, what="the node reads seldom")
        await other.add(Kind.DISCONNECT, "bob")
        server.freeze()
        first, second = (asyncio.ensure_future(node.begin(seen)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled() and not second.done()
        server.thaw()
        await second
        assert seen.names == ["bob"]


async def test_a_login_that_waits_while_the_node_stops_fails(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, lists(server.url) as make:
        node = make()
        node.read_while(lambda: False)
        await node.begin(Seen())
        await eventually(lambda: is_idle(node), within_s=30, what="the node reads seldom")
        server.freeze()
        login = asyncio.ensure_future(node.begin(Seen()))
        await asyncio.sleep(0)
        await node.stop()
        with pytest.raises(BrokerUnavailable):
            await login
        server.thaw()


async def is_idle(node: Any) -> bool:
    return bool(node._is_idle)
