"""Limits over all nodes, for what clients send, publish and subscribe to: nodes in one process, on a manual clock."""

import asyncio
from typing import Any

import pytest

from snorky.gateway import ClusterLimits, Limits
from snorky.gateway.connection import cluster_rates, rate_limiter
from snorky.gateway.presence import rate_exchange
from snorky.gateway.testing import CallFailed, MemoryClient, MemoryCluster, memory_cluster
from snorky.services.pubsub import PubSubService
from tests.unit.connection.test_rate_limiter import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (rate_limiter, cluster_rates, rate_exchange):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


def pubsub(**rule: Any) -> list[PubSubService]:
    return [PubSubService(channels=[{"match": "limited*", **rule}] if rule else [], unmatched="open")]


async def outcome(client: MemoryClient, channel: Any = "news", message: Any = "x") -> str:
    """Publish; returns the error's code, or "ok"."""
    try:
        await client.call("pubsub", "publish", channel=channel, message=message)
    except CallFailed as failed:
        assert failed.code == "too_large" or 0 < failed.reply["retryAfterMs"] <= 5000
        return failed.code
    return "ok"


def hits(cluster: MemoryCluster, limit: str) -> float:
    samples = [
        node.metrics.registry.get_sample_value("snorky_limit_hits_total", {"limit": limit}) for node in cluster.nodes
    ]
    return sum(each or 0.0 for each in samples)


async def test_publications_of_an_identity_are_limited_over_all_nodes(clock: Clock) -> None:
    limits = ClusterLimits(publishes_per_s_per_identity=4)
    async with memory_cluster(2, pubsub, cluster_limits=limits) as cluster:
        a, b = await cluster.connect(0, "ann"), await cluster.connect(1, "ann")
        second = await cluster.connect(1, "ann")
        assert [await outcome(client) for client in (a, a, b, second)] == ["ok"] * 4
        assert await outcome(a) == await outcome(b, "other") == "rate_limited"
        assert hits(cluster, "cluster_publishes_per_identity") == 2
        assert await outcome(await cluster.connect(0, "bob")) == "ok"
        anonymous = await cluster.connect(0)
        assert [await outcome(anonymous) for _ in range(10)] == ["ok"] * 10
        await a.call("pubsub", "subscribe", channel="news")
        clock.now_s += 1.0
        assert await outcome(a) == "ok"


async def test_publications_on_a_channel_are_limited_over_all_nodes(clock: Clock) -> None:
    async with memory_cluster(2, lambda: pubsub(publishes_per_s=4)) as cluster:
        clients = [await cluster.connect(number % 2) for number in range(4)]
        assert [await outcome(client, "limited") for client in clients] == ["ok"] * 4
        assert {await outcome(client, "limited") for client in clients[:2]} == {"rate_limited"}
        assert await outcome(clients[0], "limited too") == "ok"
        assert await outcome(clients[0], "news") == "ok"
        assert hits(cluster, "channel_publishes_per_s") == 2


async def test_a_refused_publication_counts_against_no_other_limit(clock: Clock) -> None:
    limits = ClusterLimits(publishes_per_s_per_identity=2)
    async with memory_cluster(1, lambda: pubsub(publishes_per_s=1), cluster_limits=limits) as cluster:
        ann = await cluster.connect(0, "ann")
        assert [await outcome(ann, "limited") for _ in range(5)] == ["ok"] + ["rate_limited"] * 4
        assert [await outcome(ann, "news") for _ in range(2)] == ["ok", "rate_limited"]


async def subscribing(client: MemoryClient, channel: Any = "limited", **others: Any) -> str:
    """Subscribe; returns the error's code, or "ok"."""
    try:
        await client.call("pubsub", "subscribe", channel=channel, **others)
    except CallFailed as failed:
        return failed.code
    return "ok"


@pytest.mark.parametrize("history", [0, 10])
async def test_subscribers_of_a_channel_are_limited_over_all_nodes(history: int) -> None:
    async with memory_cluster(2, lambda: pubsub(subscribers_max=2, history=history)) as cluster:
        clients = [await cluster.connect(number % 2) for number in range(4)]
        assert [await subscribing(client, recover=True) for client in clients] == ["ok", "ok"] + ["limit_exceeded"] * 2
        assert await subscribing(clients[0]) == "already_subscribed"
        assert await subscribing(clients[2], "limited too") == await subscribing(clients[2], "news") == "ok"
        assert hits(cluster, "channel_subscribers_max") == 2
        await clients[0].call("pubsub", "unsubscribe", channel="limited")
        assert await subscribing(clients[3]) == "ok"
        clients[1].disconnect()
        assert await subscribing(clients[2]) == "ok"
        assert cluster.units.total("channel_subscribers_max", "pubsub:limited") == 2


async def test_channels_of_an_identity_are_limited_over_all_nodes() -> None:
    async with memory_cluster(2, pubsub, cluster_limits=ClusterLimits(channels_per_identity=3)) as cluster:
        a, b, anonymous = await cluster.connect(0, "ann"), await cluster.connect(1, "ann"), await cluster.connect(1)
        assert [await subscribing(*each) for each in ((a, "x"), (b, "x"), (b, "y"))] == ["ok"] * 3
        assert await subscribing(a, "z") == await subscribing(b, "z") == "limit_exceeded"
        assert [await subscribing(anonymous, name) for name in "abcde"] == ["ok"] * 5
        assert await subscribing(await cluster.connect(0, "bob"), "z") == "ok"
        assert hits(cluster, "cluster_channels_per_identity") == 2
        cluster.kill(1)
        assert [await subscribing(a, name) for name in "yzw"] == ["ok", "ok", "limit_exceeded"]


async def test_a_failed_subscription_counts_no_more() -> None:
    async with memory_cluster(1, lambda: pubsub(subscribers_max=1)) as cluster:
        client = await cluster.connect()
        cluster.brokers[0].is_failing = True
        assert await subscribing(client) == "unavailable"
        cluster.brokers[0].is_failing = False
        assert cluster.units.total("channel_subscribers_max", "pubsub:limited") == 0
        cluster.units.is_failing = True
        assert await subscribing(client) == "unavailable"
        assert await subscribing(client, "news") == "ok", "without a limit there is nothing to count"
        cluster.units.is_failing = False
        assert await subscribing(client) == "ok"


class Faulty(PubSubService):
    """Its first notification is an error of the service."""

    is_failing = True

    def notification(self, channel: Any) -> Any:
        if self.is_failing:
            raise RuntimeError("a service's own fault")
        return super().notification(channel)


async def test_a_subscription_that_a_service_prevents_counts_no_more() -> None:
    services = [Faulty(channels=[{"match": "limited", "subscribers_max": 1}], unmatched="open")]
    async with memory_cluster(1, lambda: services) as cluster:
        client = await cluster.connect()
        assert await subscribing(client) == "internal"
        assert cluster.units.total("channel_subscribers_max", "pubsub:limited") == 0
        services[0].is_failing = False
        assert await subscribing(client) == "ok"


async def test_limits_of_rules_that_are_new_or_changed_while_a_node_runs(clock: Clock) -> None:
    services = [PubSubService(unmatched="open")]
    async with memory_cluster(1, lambda: services) as cluster:
        a, b = await cluster.connect(), await cluster.connect()
        assert not cluster.units.nodes, "without limits nothing is counted"
        for per_s, most in ((2, 1), (4, 2)):
            (other,) = pubsub(publishes_per_s=per_s, subscribers_max=most)
            await cluster.nodes[0].replace_rules([(services[0], other)])
            assert cluster.units.nodes == {"n0"}
            clock.now_s += 10.0
            assert [await outcome(a, "limited") for _ in range(per_s + 1)][-2:] == ["ok", "rate_limited"]
            assert [await subscribing(each) for each in (a, b)].count("ok") == 1
        assert cluster.units.total("channel_subscribers_max", "pubsub:limited") == 2


async def test_a_subscription_that_begins_again_keeps_its_place() -> None:
    services = pubsub(subscribers_max=1)
    async with memory_cluster(1, lambda: services) as cluster:
        client, other = await cluster.connect(), await cluster.connect()
        assert await subscribing(client) == "ok"
        services[0].topics.suspend(client.connection, "limited")
        assert await subscribing(other) == "limit_exceeded"
        cluster.units.is_failing = True
        assert await subscribing(client) == "ok", "it is counted already"
        client.disconnect()
        cluster.units.is_failing = False
        assert await subscribing(other) == "ok"


async def test_rights_that_change_while_a_subscription_is_being_counted_apply() -> None:
    services = pubsub(subscribers_max=5)
    async with memory_cluster(1, lambda: services) as cluster:
        client, node = await cluster.connect(0, "ann"), cluster.nodes[0]
        take, has_begun, may_end = cluster.limit_stores[0].take, asyncio.Event(), asyncio.Event()

        async def late(*units: Any) -> bool:  # as if Redis answered late
            has_begun.set()
            await may_end.wait()
            return await take(*units)

        cluster.limit_stores[0].take = late  # type: ignore[method-assign]
        asking = asyncio.create_task(subscribing(client))
        await has_begun.wait()
        closed = PubSubService(
            channels=[{"match": "limited*", "subscribers_max": 5, "allow_subscribe": "nobody"}], unmatched="open"
        )
        await node.replace_rules([(services[0], closed)])
        may_end.set()
        assert await asking == "unavailable"
        assert not client.connection.channels
        assert cluster.units.total("channel_subscribers_max", "pubsub:limited") == 0
        assert await subscribing(client) == "not_authorized"


async def test_subscribers_that_were_lost_are_closed() -> None:
    async with memory_cluster(1, lambda: pubsub(subscribers_max=3)) as cluster:
        clients = [await cluster.connect() for _ in range(3)]
        for client in clients:
            await subscribing(client)
        cluster.nodes[0].cluster_limits.counts.on_lost("channel_subscribers_max", "pubsub:limited", 1)
        assert await clients[2].closed() == 4000
        assert not clients[0].is_closed and not clients[1].is_closed


async def test_the_size_of_messages_on_a_channel_is_limited() -> None:
    async with memory_cluster(1, lambda: pubsub(message_max_bytes=10)) as cluster:
        client = await cluster.connect()
        assert await outcome(client, "limited", "x" * 8) == "ok"
        assert await outcome(client, "limited", "x" * 9) == "too_large"
        assert await outcome(client, "limited", "é" * 5) == "too_large", "bytes, not characters"
        assert await outcome(client, "news", "x" * 1000) == "ok"
        assert hits(cluster, "channel_message_max_bytes") == 2


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (ClusterLimits(messages_per_s_per_identity=4), "messages_per_identity_in_cluster"),
        (ClusterLimits(bytes_per_s_per_identity=4000), "bytes_per_identity_in_cluster"),
    ],
)
async def test_messages_and_bytes_of_an_identity_are_limited(clock: Clock, limits: ClusterLimits, limit: str) -> None:
    one = Limits(messages_per_s=1e9, messages_burst=1_000_000, message_max_bytes=1000, outbox_max_bytes=1 << 20)
    async with memory_cluster(2, pubsub, cluster_limits=limits, limits=one) as cluster:
        a, b, other = await cluster.connect(0, "ann"), await cluster.connect(1, "ann"), await cluster.connect(0, "bob")
        assert [await outcome(client, "news", "x" * 800) for client in (a, b, a, b)] == ["ok"] * 4
        assert await outcome(a, "news", "x" * 800) == await outcome(b, "news", "x" * 800) == "rate_limited"
        assert await outcome(other, "news", "x" * 800) == "ok"
        assert hits(cluster, limit) == 2
        clock.now_s += 1.0
        assert await outcome(a, "news", "x" * 800) == "ok"
