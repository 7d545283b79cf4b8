"""The stored server-side subscriptions: one contract, for every supported server and for the cluster in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from snorky.gateway.contracts import subscriptions as contract
from snorky.gateway.contracts.subscriptions import LocalSubscriptionStore, StoredSubscription, SubscriptionStore
from snorky.gateway.errors import BrokerUnavailable, LimitExceeded
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import subscriptions as redis_module
from snorky.gateway.redis.backend import RedisBackend
from snorky.gateway.testing.control import MemorySubscriptionStore, SharedOrders
from tests.support.processes.tools import eventually
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.redis_servers import KINDS, RedisServer, start_server

MakeStore = Callable[[], SubscriptionStore]


@asynccontextmanager
async def stores(url: str) -> AsyncIterator[MakeStore]:
    """Make the stores of several nodes; they are stopped at the end."""
    made: list[SubscriptionStore] = []

    def make() -> SubscriptionStore:
        backend = RedisBackend.of(url, prefix="test", node_id=f"n{len(made)}", metrics=Metrics())
        made.append(backend.subscription_store())
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            await each.stop()


@pytest.fixture(params=[*KINDS, "memory", "spread", "cluster"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeStore]:
    if request.param == "memory":
        store = MemorySubscriptionStore(SharedOrders())
        yield lambda: store
        return
    starting = ClusterLab("redis", tmp_path) if request.param == "cluster" else start_server(request.param, tmp_path)
    async with starting as server, stores(server.url) as made:
        yield made


def of(channel: str, service: str = "pubsub", **options: object) -> StoredSubscription:
    return StoredSubscription(service, channel, **options)  # type: ignore[arg-type]


async def channels(store: SubscriptionStore, identity: str = "ann") -> list[str]:
    return sorted(f"{each.service}:{each.channel}" for each in await store.find(identity))


async def test_what_one_node_stores_every_node_finds(make: MakeStore) -> None:
    a, b = make(), make()
    assert await b.find("ann") == []
    await a.add("ann", of("news"))
    await a.add("ann", of("sport", has_positions=False))
    await a.add("ann", of("news", "rooms"))
    await b.add("bob", of("news"))
    assert await channels(b) == ["pubsub:news", "pubsub:sport", "rooms:news"]
    assert {each.channel: each.has_positions for each in await b.find("ann") if each.service == "pubsub"} == {
        "news": True,
        "sport": False,
    }
    await b.add("ann", of("sport"))
    assert all(each.has_positions for each in await a.find("ann")), "the later one takes its place"


async def test_removal_is_by_channel_by_service_or_for_all_identities(make: MakeStore) -> None:
    store = make()
    for identity in ("ann", "bob"):
        for channel in ("news", "news2", "sport"):
            await store.add(identity, of(channel))
        await store.add(identity, of("news", "pubsub2"))
    await store.remove("ann", "pubsub", "news")
    await store.remove("ann", "pubsub", "never")
    assert await channels(store) == ["pubsub2:news", "pubsub:news2", "pubsub:sport"]
    await store.end("pubsub", "sport")
    await store.end("pubsub", "never")
    assert await channels(store) == ["pubsub2:news", "pubsub:news2"]
    assert await channels(store, "bob") == ["pubsub2:news", "pubsub:news", "pubsub:news2"]
    await store.remove("bob", "pubsub", None)
    assert await channels(store, "bob") == ["pubsub2:news"]
    await store.add("ann", of("sport"))
    assert await channels(store) == ["pubsub2:news", "pubsub:news2", "pubsub:sport"], "it may begin again"
    assert await channels(store, "bob") == ["pubsub2:news"]


async def test_subscription_expires(make: MakeStore) -> None:
    store = make()
    await store.add("ann", of("short", expires_in_s=3.0))
    await store.add("ann", of("long", expires_in_s=100.0))
    rest = {each.channel: each.expires_in_s or 0.0 for each in await store.find("ann")}
    assert 0 < rest["short"] <= 3.0 < 90 < rest["long"] <= 100
    async with asyncio.timeout(30.0):
        while await channels(store) != ["pubsub:long"]:  # noqa: ASYNC110 - Redis' clock has no event
            await asyncio.sleep(0.05)


async def test_number_for_one_identity_is_bounded(make: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "STORED_MAX", 3)
    monkeypatch.setattr(redis_module, "STORED_MAX", 3)
    store = make()
    await store.add("ann", of("expires", expires_in_s=3.0))
    for channel in ("a", "b"):
        await store.add("ann", of(channel))
    with pytest.raises(LimitExceeded, match="At most"):
        await store.add("ann", of("c"))
    await store.add("ann", of("a", has_positions=False))
    await store.add("bob", of("c"))

    async def is_added() -> bool:  # by Redis' clock
        with suppress(LimitExceeded):
            await store.add("ann", of("c"))
            return True
        return False

    await eventually(is_added, within_s=30.0, what="an expired subscription does not count")
    assert await channels(store) == ["pubsub:a", "pubsub:b", "pubsub:c"]


@pytest.mark.parametrize("is_found", [True, False])
async def test_channels_that_ended_for_all_identities_do_not_count(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch, is_found: bool
) -> None:
    monkeypatch.setattr(contract, "STORED_MAX", 3)
    monkeypatch.setattr(redis_module, "STORED_MAX", 3)
    store = make()
    await store.add("ann", of("stays"))
    for number in range(4):
        await store.add("ann", of(f"order:{number}"))
        await store.end("pubsub", f"order:{number}")
        if is_found:
            assert await channels(store) == ["pubsub:stays"]
    await store.add("ann", of("order:0"))
    assert await channels(store) == ["pubsub:order:0", "pubsub:stays"]


async def test_identities_of_one_process_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "LOCAL_MAX", 2)
    store = LocalSubscriptionStore()
    for identity in ("ann", "bob", "ann"):
        await store.add(identity, of("a"))
    with pytest.raises(LimitExceeded, match="At most 2 identities"):
        await store.add("cid", of("a"))
    await store.remove("bob", "pubsub", "a")
    await store.add("cid", of("a", expires_in_s=0.01))
    await asyncio.sleep(0.05)
    await store.add("dan", of("a"))


@pytest.mark.parametrize("text", ["a:b", "{x}", "}", "*", "Ærøskøbing", " ", "\\", '"', "1", "x" * 255])
async def test_texts_are_taken_as_they_are(make: MakeStore, text: str) -> None:
    store = make()
    await store.add(text, of(text))
    assert await channels(store, text) == [f"pubsub:{text}"]
    await store.remove(text, "pubsub", text)
    assert await channels(store, text) == []


async def test_both_keys_expire_unless_they_are_used(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, stores(server.url) as make, server.client() as redis:
        store, keys = make(), ("test:{subscriptions ann}", "test:{subscribed pubsub:news}")
        await store.add("ann", of("news"))
        for key in keys:
            assert 2_591_000_000 < await redis.pttl(key) <= 2_592_000_000
            await redis.pexpire(key, 60_000)
        await store.find("ann")
        for key in keys:
            assert 2_591_000_000 < await redis.pttl(key) <= 2_592_000_000
        await store.remove("ann", "pubsub", "news")
        assert not await redis.exists(keys[0])
        await store.end("pubsub", "news")
        assert await redis.keys("test:*") == []


async def test_subscriptions_whose_channel_was_lost_have_ended(tmp_path: Path) -> None:
    async with start_server("redis", tmp_path) as server, stores(server.url) as make, server.client() as redis:
        store = make()
        await store.add("ann", of("news"))
        await redis.delete("test:{subscribed pubsub:news}")
        await store.add("bob", of("news"))
        assert (await store.find("ann"), await channels(store, "bob")) == ([], ["pubsub:news"])


async def test_calls_without_redis_fail_and_later_ones_succeed(tmp_path: Path) -> None:
    async with RedisServer("redis", tmp_path) as server, stores(server.url) as make:
        store = make()
        await store.add("ann", of("news"))
        server.kill()
        for call in (store.find("ann"), store.add("ann", of("x")), store.remove("ann", "pubsub", None)):
            with pytest.raises(BrokerUnavailable):
                await call
