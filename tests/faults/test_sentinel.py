"""Sentinel: a primary dies, is cut off, becomes a replica; a node follows the sentinels."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snorky.gateway.contracts.history import History
from snorky.gateway.contracts.revocations import Kind
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import RedisBroker
from snorky.gateway.redis.admin.nodes import read_nodes
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.backend import parts_of
from snorky.gateway.redis.target import target_from_url
from tests.support.fakes.brokers import PREFIX, Recorder, hears, open_broker
from tests.support.fakes.directories import FakeNode
from tests.support.fakes.histories import history_on
from tests.support.fakes.leases import reporting
from tests.support.servers.redis_servers import REAL_KINDS
from tests.support.servers.sentinels import SentinelLab

pytestmark = pytest.mark.needs("redis-server")

FAILOVER_S = 15.0  # of the sentinels; no node can know earlier
HEALED_S = 6.0  # of a node, after that


@pytest.fixture(params=["redis"])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SentinelLab]:
    async with SentinelLab(request.param, tmp_path) as running:
        yield running


async def comes_through(broker: RedisBroker, recorder: Recorder, payload: bytes, *, within_s: float) -> None:
    """Publish until a message is received."""
    async with asyncio.timeout(within_s):
        while payload not in recorder.of("pubsub:news"):
            try:
                await broker.publish("pubsub:news", payload)
                await recorder.until(lambda: payload in recorder.of("pubsub:news"), within_s=1.0)
            except (BrokerUnavailable, AssertionError):
                await asyncio.sleep(0.05)  # a publish that fails at once would spin


async def subscribers_at(server: object) -> int:
    client = server.client()  # type: ignore[attr-defined]
    try:
        return int((await client.execute_command("PUBSUB", "NUMSUB", f"{PREFIX}:{{pubsub:news}}"))[1])
    finally:
        await client.aclose()


@pytest.mark.parametrize("lab", REAL_KINDS, indirect=True)
async def test_a_node_follows_the_primary_that_was_killed_under_load(lab: SentinelLab) -> None:
    async with open_broker(lab.url) as (broker, recorder):
        await broker.subscribe("pubsub:news")
        futures = [broker.publish("pubsub:news", b"before %d" % number) for number in range(1000)]
        await asyncio.gather(*futures)
        lab.primary.kill()
        futures = [broker.publish("pubsub:news", b"meanwhile") for _ in range(100)]
        assert all(
            isinstance(each, BrokerUnavailable) for each in await asyncio.gather(*futures, return_exceptions=True)
        )
        await lab.until_failed_over(within_s=FAILOVER_S)
        await hears(broker, within_s=HEALED_S)
        await comes_through(broker, recorder, b"after", within_s=30.0)
        assert recorder.interruptions == 1
        assert await subscribers_at(lab.replica) == 1


async def test_a_cut_off_primary_that_answers_its_own_canary_is_left(lab: SentinelLab) -> None:
    async with open_broker(lab.url) as (broker, recorder):
        await broker.subscribe("pubsub:news")
        await lab.isolate_primary()
        assert not broker.is_redis_unverified  # nothing is lost yet: it is still the primary
        await lab.until_failed_over(within_s=FAILOVER_S)
        async with asyncio.timeout(HEALED_S):
            while not await subscribers_at(lab.replica):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        await hears(broker, within_s=HEALED_S)
        await comes_through(broker, recorder, b"after", within_s=30.0)
        assert await subscribers_at(lab.primary) == 0


async def test_a_primary_that_became_a_replica_is_left_before_anybody_watches(
    lab: SentinelLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snorky.gateway.redis.connection.reconnect.WATCH_S", 3600.0)
    metrics = Metrics()
    target = target_from_url(lab.url)
    async with open_broker(lab.url) as (broker, _):
        directory = parts_of(target, prefix=PREFIX, node_id="node-1", metrics=metrics).directory(broker)
        await directory.start(FakeNode("node-1"))
        try:
            await directory.put_token("before", 60.0)
            await lab.demote_primary()
            with pytest.raises(BrokerUnavailable) as refused:
                await directory.put_token("meanwhile", 60.0)
            assert refused.value.what.startswith("READONLY")
            await lab.promote_primary()
            assert await asyncio.wait_for(directory.put_token("after", 60.0), HEALED_S)
            assert metrics.registry.get_sample_value("snorky_redis_reconnects_total", {"role": "directory"}) == 1
        finally:
            await directory.stop()


async def test_the_state_of_a_node_leaves_a_cut_off_primary_too(lab: SentinelLab) -> None:
    target = target_from_url(lab.url)
    phase = "before"
    report = reporting(target, "a", lambda: {"phase": phase}, prefix=PREFIX, renew_s=0.1)
    async with open_broker(lab.url), report:
        await lab.isolate_primary()
        await lab.until_failed_over(within_s=FAILOVER_S)
        phase = "after"
        client = client_of(target_from_url(lab.replica.url))
        try:
            await target.resolved()  # what the links of a node do, every two seconds
            async with asyncio.timeout(HEALED_S):
                while "after" not in [node.state["phase"] for node in await read_nodes(client, PREFIX)]:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        finally:
            await client.aclose()


async def test_a_lagging_replica_counts_as_another_history(lab: SentinelLab) -> None:
    """Writes that the old primary acknowledged are lost; none of its positions matches on the new primary."""
    keeper = history_on(target_from_url(lab.url))
    await keeper.start()
    try:
        kept = History(60.0)
        replicated = await keeper.publish("pubsub:news", b"1", kept)
        await lab.until_replicated()
        await lab.let_replica_lag()
        lost = await keeper.publish("pubsub:news", b"2", kept)
        lab.primary.kill()
        await lab.until_failed_over(within_s=FAILOVER_S)
        again = None
        async with asyncio.timeout(HEALED_S):
            while again is None:
                try:
                    again = await keeper.publish("pubsub:news", b"3", kept)
                except BrokerUnavailable:
                    await asyncio.sleep(0.05)
        assert again.epoch != lost.epoch and again.offset == lost.offset and again.tag != lost.tag
        assert await keeper.read("pubsub:news", lost) is None
        assert await keeper.read("pubsub:news", replicated) is None, "it lacks 2, and no check could detect that"
        found, top = await keeper.recent("pubsub:news", 10)
        assert [each.payload for each in found] == [b"1", b"3"] and top == again
    finally:
        await keeper.stop()


async def test_a_revocation_holds_after_a_failover_and_new_ones_are_received(lab: SentinelLab) -> None:
    target = target_from_url(lab.url)
    giving, watching = (
        parts_of(target, prefix=PREFIX, node_id=node, metrics=Metrics()).revocations(keep_s=3600.0, interval_s=0.05)
        for node in "ab"
    )
    seen: list[str] = []

    async def until_seen(name: str) -> None:
        async with asyncio.timeout(HEALED_S):
            while name not in seen:  # noqa: ASYNC110 - another node
                await asyncio.sleep(0.02)

    async def give(name: str) -> None:
        async with asyncio.timeout(HEALED_S):
            while True:
                try:
                    return await giving.add(Kind.TOKEN, name)
                except BrokerUnavailable:
                    await asyncio.sleep(0.05)

    try:
        await watching.begin(lambda revocation: seen.append(revocation.name))
        await give("before")
        await until_seen("before")
        await lab.until_replicated()
        lab.primary.kill()
        await lab.until_failed_over(within_s=FAILOVER_S)
        await give("after")
        await until_seen("after")
        assert [each.name for each in await watching.find("ann", "before")] == ["before"]
        assert sorted(seen) == ["after", "before"], "each once"
    finally:
        await giving.stop()
        await watching.stop()
