"""snorky.client.Publisher through a real Redis to real nodes: once, in order, with correct receipts."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from redis import Redis

from snorky.client import Position, Publication, Publisher, PublishError
from snorky.client.aio import Publisher as AsyncPublisher
from snorky.gateway.redis.cluster.slots import slot_of
from tests.support.processes.nodes import GATEWAY, NodeProcess, RedisProcess
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import eventually
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.sentinels import SentinelLab

pytestmark = pytest.mark.needs("redis-server")

KEYS = 10_000
BATCH = 250
RULES = """
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "kept:*"
history = 20000
presence = true
"""


@dataclass
class Town:
    """One Redis, two nodes."""

    redis: RedisProcess
    nodes: list[NodeProcess]

    async def is_ready(self) -> bool:
        """True if the nodes hear Redis, and Redis has the function and the rules."""
        if [await node.status("/readyz") for node in self.nodes] != [200] * len(self.nodes):
            return False
        with Redis.from_url(self.redis.url) as client:
            return bool(client.function_list("snorky"))

    def entries(self, channel: str) -> list[bytes]:
        """Read the payloads that Redis stores of a channel, in order."""
        with Redis.from_url(self.redis.url) as client:
            return [fields[b"d"] for _id, fields in client.xrange(f"snorky:{{pubsub:{channel}}}:history")]


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    config = tmp_path / "snorky.toml"
    config.write_text(RULES)
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(tmp_path))
        env = {"SNORKY_REDIS_URL": redis.url, "SNORKY_PUBLIC__DRAIN_GRACE_S": "0"}
        argv = [*GATEWAY, "serve", "--config", str(config)]
        nodes = [await stack.enter_async_context(NodeProcess.running(env, argv=argv)) for _ in range(2)]
        town = Town(redis, nodes)
        await eventually(town.is_ready, within_s=30, what="the nodes are ready, and the function is loaded")
        yield town


async def test_receipts_have_consecutive_positions_and_the_number_of_nodes(town: Town) -> None:
    async with AsyncPublisher(town.redis.url) as publisher, aiohttp.ClientSession() as session:
        clients = [await session.ws_connect(node.websocket_url) for node in town.nodes]
        for client in clients:
            subscribe = {"command": "subscribe", "params": {"channel": "kept:news"}, "callId": 1}
            await client.send_json({"service": "pubsub", "message": subscribe})
            assert (await client.receive_json(timeout=30))["message"]["type"] == "response"
        first = await publisher.publish("kept:news", {"n": 1}, count=True)
        many = await publisher.publish_many(Publication("kept:news", {"n": n}) for n in range(2, 600))
        assert (first.nodes, first.connections) == (2, 2)
        assert isinstance(first.position, Position)
        assert [receipt.position.offset for receipt in many if receipt.position] == list(range(2, 600))
        assert {receipt.position.epoch for receipt in many if receipt.position} == {first.position.epoch}
        for number in range(1, 600):
            message = (await client.receive_json(timeout=30))["message"]
            assert message == {"type": "message", "channel": "kept:news", "message": {"n": number}}
        unheard = await publisher.publish("not kept", 1, count=True)
        assert (unheard.nodes, unheard.connections) == (0, 0)
        assert (await publisher.publish("not kept", 1)).position is None


async def test_same_key_is_published_once_and_answered_alike(town: Town) -> None:
    with Publisher(town.redis.url) as publisher:
        receipts = [await asyncio.to_thread(publisher.publish, "kept:a", n, key="order-7") for n in range(3)]
    assert len({str(receipt.position) for receipt in receipts}) == 1
    assert town.entries("kept:a") == [b"0"]


async def test_ten_thousand_keys_through_a_proxy_that_loses_replies_are_ten_thousand_entries(town: Town) -> None:
    chance = random.Random(7)

    async def spoil(proxy: FaultProxy) -> None:
        while True:
            await asyncio.sleep(chance.uniform(0.0, 0.1))
            proxy.lose_replies()
            await asyncio.sleep(chance.uniform(0.0, 0.02))
            proxy.cut()
            proxy.heal()

    async with FaultProxy("127.0.0.1", town.redis.port) as proxy:
        spoiler = asyncio.ensure_future(spoil(proxy))
        async with AsyncPublisher(proxy.url, timeout_s=60, attempt_timeout_s=0.5, concurrency_max=1) as publisher:
            for start in range(0, KEYS, BATCH):
                numbers = range(start, start + BATCH)
                if start % (4 * BATCH) == 0:
                    proxy.lose_next_reply(to=b"snorky_publish")  # ten at least, whatever the random choice
                await publisher.publish_many(Publication("kept:b", number, key=f"k{number}") for number in numbers)
        spoiler.cancel()
        assert proxy.connections > 10, "no reply was lost: no test"
    assert town.entries("kept:b") == [str(number).encode() for number in range(KEYS)]


async def test_publishing_resumes_after_redis_is_killed_and_restarts_empty(town: Town, tmp_path: Path) -> None:
    async with AsyncPublisher(town.redis.url, timeout_s=20) as publisher:
        before = await publisher.publish("kept:c", 1)
        port = town.redis.port
        await town.redis.close()
        with pytest.raises(PublishError) as caught:
            async with AsyncPublisher(town.redis.url, timeout_s=0.5) as hasty:
                await hasty.publish("kept:c", 2)
        assert not caught.value.may_have_happened
        async with RedisProcess.running(tmp_path, port=port):
            after = await publisher.publish("kept:c", 3)
        assert before.position is not None and after.position is not None
        assert before.position.epoch != after.position.epoch


async def test_redis_out_of_memory_refuses_clearly_and_stores_nothing(town: Town) -> None:
    with Redis.from_url(town.redis.url) as client:
        client.config_set("maxmemory", 1)
    async with AsyncPublisher(town.redis.url, timeout_s=0.5) as publisher:
        with pytest.raises(PublishError, match="OOM") as caught:
            await publisher.publish("kept:d", 1)
    assert (caught.value.code, caught.value.may_have_happened) == ("unavailable", False)
    assert town.entries("kept:d") == []


async def test_redis_without_a_node_gives_an_error_with_a_remedy(tmp_path: Path) -> None:
    async with RedisProcess.running(tmp_path) as redis:
        async with AsyncPublisher(redis.url) as publisher:
            with pytest.raises(PublishError, match="start a node"):
                await publisher.publish("news", 1)
        async with AsyncPublisher(redis.url, if_no_function="publish") as plain:
            assert (await plain.publish("news", 1, count=True)).nodes == 0


async def test_publisher_follows_the_primary_that_the_sentinels_name(tmp_path: Path) -> None:
    config = tmp_path / "snorky.toml"
    config.write_text(RULES)
    async with SentinelLab("redis", tmp_path) as lab:
        argv = [*GATEWAY, "serve", "--config", str(config)]
        async with NodeProcess.running({"SNORKY_REDIS_URL": lab.url}, argv=argv):
            async with AsyncPublisher(lab.url, timeout_s=30, attempt_timeout_s=1) as publisher:
                before = await publisher.publish("kept:e", 1)
                lab.primary.kill()
                after = await publisher.publish("kept:e", 2)
                assert before.position is not None and after.position is not None
                assert str(before.position) != str(after.position)


async def test_publisher_finds_channels_in_a_cluster_and_follows_a_slot_that_moves(tmp_path: Path) -> None:
    config = tmp_path / "snorky.toml"
    config.write_text(RULES)
    async with ClusterLab("redis", tmp_path) as lab:
        argv = [*GATEWAY, "serve", "--config", str(config)]
        async with NodeProcess.running({"SNORKY_REDIS_URL": lab.url}, argv=argv) as node:
            async with AsyncPublisher(lab.url) as publisher, aiohttp.ClientSession() as session:
                client = await session.ws_connect(node.websocket_url)
                subscribe = {"command": "subscribe", "params": {"channel": "kept:7"}, "callId": 1}
                await client.send_json({"service": "pubsub", "message": subscribe})
                assert (await client.receive_json(timeout=30))["message"]["type"] == "response"
                first = await publisher.publish_many(Publication(f"kept:{number}", number) for number in range(100))
                assert {receipt.position.offset for receipt in first if receipt.position} == {1}
                slot = slot_of(b"snorky:{pubsub:kept:7}")
                source = slot * 3 // 16384
                await lab.move_slot(slot, source, (source + 1) % 3)
                second = await publisher.publish("kept:7", "moved", count=True)
                assert second.position is not None and second.position.offset == 2
                heard = [(await client.receive_json(timeout=30))["message"]["message"] for _ in range(2)]
                assert heard == [7, "moved"]
