"""Several independent Redis servers, one of them down: its channels wait for it, nothing else does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from snorky.gateway.contracts.history import History
from snorky.gateway.contracts.revocations import Kind, Revocation
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis import RedisBackend
from snorky.gateway.redis.multi.hashing import targets_of
from tests.support.fakes.brokers import PREFIX, Recorder, broker_of, hears, open_broker
from tests.support.fakes.directories import FakeNode
from tests.support.processes.nodes import NodeProcess
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import RedisServer, SpreadServers

pytestmark = pytest.mark.needs("redis-server")

HOUR = History(3600.0)


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[SpreadServers]:
    async with asyncio.timeout(60.0), SpreadServers(tmp_path) as running:
        yield running


def key_on(servers: SpreadServers, server: RedisServer, service: str = "pubsub") -> str:
    """Find a key that lies on a server."""
    spread = targets_of(servers.url)
    return next(key for number in range(1000) if spread.of(key := f"{service}:{number}").safe_url == server.url)


def topology_of(servers: SpreadServers) -> RedisBackend:
    return RedisBackend.of(servers.url, prefix=PREFIX, node_id="node-1", metrics=Metrics())


async def test_one_that_is_down_takes_only_its_channels_along(servers: SpreadServers) -> None:
    down, up = servers.servers
    lost, kept = key_on(servers, down), key_on(servers, up)
    async with open_broker(servers.url, publish_timeout_s=0.5, confirm_timeout_s=0.5) as (broker, heard):
        for key in (lost, kept):
            await broker.subscribe(key)
        await down.stop()
        await hears(broker, False)
        assert await broker.publish(kept, b"goes on") == 1
        await heard.until(lambda: heard.of(kept) == [b"goes on"])
        await broker.subscribe(key_on(servers, up, "other"))
        with pytest.raises(BrokerUnavailable):
            await broker.publish(lost, b"waits")
        with pytest.raises(BrokerUnavailable):
            await broker.subscribe(key_on(servers, down, "other"))
        assert heard.interruptions == 0 and broker.is_subscribed(kept)
        await down.start()
        await hears(broker)
        assert await broker.publish(lost, b"again") == 1
        await heard.until(lambda: heard.of(lost) == [b"again"])
        assert heard.interruptions == 1


async def test_missing_delivery_is_reported_once_for_all_servers(servers: SpreadServers) -> None:
    metrics = Metrics()
    broker = broker_of(servers.url, node_id="node-1", metrics=metrics)
    await broker.start(Recorder())
    try:
        await hears(broker)
        assert metrics.registry.get_sample_value("snorky_redis_delivery_unverified") == 0
        await servers.servers[0].stop()
        await hears(broker, False)
        assert metrics.registry.get_sample_value("snorky_redis_delivery_unverified") == 1
    finally:
        await broker.stop()


async def test_members_names_and_tokens_on_the_other_servers_still_work(servers: SpreadServers) -> None:
    down, up = servers.servers
    topology = topology_of(servers)
    node = FakeNode("node-1")
    node.directory = topology.directory
    await topology.broker.start(Recorder())
    await node.directory.start(node)
    try:
        rooms, names = [key_on(servers, each, "chat") for each in (down, up)], key_on(servers, up, "messaging")
        for room in rooms:
            assert await node.enter(room, 1, "alice")
        await down.stop()
        await hears(topology.broker, False)
        assert await node.enter(rooms[1], 2, "bob")
        assert await node.directory.claim(names, "desk", 2)
        owner = await node.directory.find(names, "desk")
        assert owner is not None and await node.directory.send(owner, b"{}")
        tokens = [await node.directory.put_token(number, 60.0) for number in range(10)]
        assert [await node.directory.take_token(token, "me") for token in tokens] == list(range(10))
    finally:
        await node.directory.stop()
        await topology.broker.stop()


async def test_histories_of_the_others_are_compared_and_read(servers: SpreadServers) -> None:
    down, up = servers.servers
    lost, kept = key_on(servers, down), key_on(servers, up)
    keeper = topology_of(servers).history_store
    await keeper.start()
    try:
        positions = {key: await keeper.publish(key, b"1", HOUR) for key in (lost, kept)}
        assert await keeper.positions([lost, kept]) == positions
        await down.stop()
        assert await keeper.positions([lost, kept]) == {kept: positions[kept]}
        with pytest.raises(BrokerUnavailable):
            await keeper.positions([lost])
    finally:
        await keeper.stop()


async def test_a_revocation_on_all_servers_is_known_by_each(servers: SpreadServers) -> None:
    revocations = topology_of(servers).revocations(keep_s=3600.0)
    told: list[Revocation] = []
    try:
        await revocations.begin(told.append)
        await revocations.add(Kind.IDENTITY, "alice")
        await servers.servers[0].stop()
        assert [each.name for each in await revocations.find("alice", None)] == ["alice"]
        with pytest.raises(BrokerUnavailable):
            await revocations.add(Kind.IDENTITY, "bob")
        async with asyncio.timeout(5.0):
            while [each.name for each in told] != ["alice", "bob"]:  # noqa: ASYNC110 - told where it could be written
                await asyncio.sleep(0.02)
    finally:
        await revocations.stop()


async def test_a_node_process_takes_a_list_and_answers_503_while_one_is_down(servers: SpreadServers) -> None:
    async with NodeProcess.running({"SNORKY_REDIS_URL": servers.url}) as node:

        async def says(status: int) -> None:
            async def ask() -> bool:
                return await node.status("/readyz") == status

            await eventually(ask, within_s=10.0, what=f"/readyz is {status}")

        await says(200)
        await servers.servers[0].stop()
        await says(503)
        await servers.servers[0].start()
        await says(200)
