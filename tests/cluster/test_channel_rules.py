"""Rules of pub/sub on two nodes with a real Redis: state of one node, and of FCALL, is seen by the other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from snorky.gateway import ChannelRule, History, Node, ServiceRegistry, Settings
from snorky.gateway.config.limits import PAYLOAD_MAX_BYTES
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.target import target_from_url
from snorky.gateway.runtime.node import running_node
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import UNLIMITED
from tests.support.fakes.memory_cluster import Resident
from tests.support.processes.tools import eventually
from tests.support.servers.clusters import ClusterLab
from tests.support.servers.redis_servers import REAL_KINDS, RedisServer
from tests.support.servers.shared import SharedServers

CHANNELS = [ChannelRule("room:*", history=100, presence=True, join_leave=True), ChannelRule("bare")]
NAME = "snorky:{pubsub:room:1}"


@dataclass
class Pair:
    """Two nodes and their Redis."""

    nodes: list[tuple[Node, ServiceRegistry]]
    server: RedisServer | ClusterLab
    redis: Redis

    def client(self, number: int, identity: str | None = None) -> Resident:
        return Resident(*self.nodes[number], identity)


@pytest.fixture(params=[*REAL_KINDS, "cluster"])
async def pair(request: pytest.FixtureRequest, shared: SharedServers) -> AsyncIterator[Pair]:
    async with shared.lend(request.param) as server, AsyncExitStack() as stack:
        assert isinstance(server, RedisServer | ClusterLab)
        nodes = []
        for _ in range(2):
            registry = ServiceRegistry([PubSubService(channels=CHANNELS)])
            settings = Settings(redis_url=server.url, limits=UNLIMITED)
            nodes.append((await stack.enter_async_context(running_node(registry, settings=settings)), registry))
        redis = client_of(target_from_url(server.url).of(NAME.encode()), timeout_s=10.0)
        stack.push_async_callback(redis.aclose)
        await eventually(lambda: _are_ready(nodes), within_s=30, what="both nodes receive from Redis")
        yield Pair(nodes, server, redis)
        for node, _ in nodes:
            for connection in node.connections:
                node.disconnect(connection, 1000)


async def _are_ready(nodes: list[tuple[Node, ServiceRegistry]]) -> bool:
    return all(node.is_ready for node, _ in nodes)


async def fcall(pair: Pair, payload: str, *key: str) -> str:
    """Publish as any client of Redis does, once Redis is there and a node has loaded the function."""

    async def answer() -> Any:
        try:
            return await pair.redis.execute_command("FCALL", "snorky_publish", 1, NAME, payload, *key)
        except (ResponseError, RedisConnectionError) as error:
            assert isinstance(error, RedisConnectionError) or "Function not found" in str(error), error
            return None

    found = await eventually(answer, within_s=30, what="the function is loaded")
    return str(found.decode())


async def test_client_that_changes_nodes_gets_all_missed_publications(pair: Pair) -> None:
    reader, writer = pair.client(0), pair.client(1, "ann")
    await reader.ask("pubsub", "subscribe", channel="room:1", recover=True)
    await writer.ask("pubsub", "publish", channel="room:1", message=1, key="k1")
    (first,) = [each for each in await reader.notified(1) if each["type"] == "message"]
    reader.node.disconnect(reader.connection, 1006)
    await writer.ask("pubsub", "publish", channel="room:1", message=1, key="k1")  # it did not know the outcome
    assert await fcall(pair, '{"two": 2}', "k2") == await fcall(pair, '{"two": 2}', "k2")
    await writer.ask("pubsub", "publish", channel="room:1", message=3)
    again = pair.client(1)
    reply = await again.ask("pubsub", "subscribe", channel="room:1", recover=first["position"])
    assert reply["recovered"] is True
    assert [(each["offset"], each["message"]) for each in reply["messages"]] == [(2, {"two": 2}), (3, 3)]
    await fcall(pair, "4")
    live = [each for each in await again.notified(1) if each["type"] == "message"]
    assert (live[0]["offset"], live[0]["message"]) == (4, 4)


async def test_presence_and_notices_are_of_both_nodes(pair: Pair) -> None:
    ann, bob = pair.client(0, "ann"), pair.client(1, "bob")
    await ann.ask("pubsub", "subscribe", channel="room:1")
    await bob.ask("pubsub", "subscribe", channel="room:1", recover=True)
    await ann.hears({"type": "joined", "channel": "room:1", "identity": "bob"})
    assert await bob.ask("pubsub", "presence", channel="room:1") == {"members": ["ann", "bob"]}
    ann.node.disconnect(ann.connection, 1006)
    await bob.hears({"type": "left", "channel": "room:1", "identity": "ann"})
    assert await bob.ask("pubsub", "presenceStats", channel="room:1") == {"members": 1, "connections": 1}


@pytest.mark.parametrize("pair", REAL_KINDS, indirect=True)
async def test_the_function_is_there_again_after_redis_lost_everything(pair: Pair) -> None:
    assert isinstance(pair.server, RedisServer)  # in a Cluster, a replica would replace it
    before = await fcall(pair, "1", "key")
    await pair.server.restart()
    after = await fcall(pair, "1", "key")
    assert before.split(":")[0] != after.split(":")[0]
    assert after.split(":")[1] == "1"


async def test_an_entry_of_17_mib_is_a_tombstone_and_delivery_continues(pair: Pair) -> None:
    """As an earlier version's function stored it. Neither the publishing nor the history connection accepts it."""
    reader, other, late = pair.client(0), pair.client(1), pair.client(1)
    begun = (await reader.ask("pubsub", "subscribe", channel="room:1", recover=True))["position"]
    await other.ask("pubsub", "subscribe", channel="room:2", recover=True)
    large = b'"' + b"x" * (17 << 20) + b'"'
    await pair.nodes[0][0].channels.history_store.publish("pubsub:room:1", large, History(300.0, 100))
    await other.ask("pubsub", "publish", channel="room:1", message="after it")

    async def recovered() -> Any:
        reply = await late.ask("pubsub", "subscribe", channel="room:1", recover=begun)
        return reply if isinstance(reply, dict) else None

    reply = await eventually(recovered, within_s=30, what="history is read")
    assert reply["recovered"] is True
    assert [each["message"] for each in reply["messages"]] == [None, "after it"]
    assert reply["messages"][0]["tombstone"] is True
    async with asyncio.timeout(20):
        heard = [each for each in await reader.notified(2) if each["type"] == "message"]
    assert [(each["offset"], each["message"]) for each in heard] == [(1, None), (2, "after it")]
    kept = await reader.ask("pubsub", "history", channel="room:1")
    assert [each["message"] for each in kept["messages"]] == [None, "after it"]
    await reader.ask("pubsub", "publish", channel="room:2", message="as ever")
    async with asyncio.timeout(20):
        assert [each["message"] for each in await other.notified(1)] == ["as ever"]


async def test_the_function_accepts_exactly_what_a_backend_may_publish(pair: Pair) -> None:
    reader = pair.client(0)
    await reader.ask("pubsub", "subscribe", channel="room:1", recover=True)
    await fcall(pair, '"' + "x" * (PAYLOAD_MAX_BYTES - 2) + '"')
    for size in (PAYLOAD_MAX_BYTES - 1, 17 << 20):
        with pytest.raises(ResponseError, match=f"{size + 2} bytes, more than {PAYLOAD_MAX_BYTES}"):
            await pair.redis.execute_command("FCALL", "snorky_publish", 1, NAME, '"' + "x" * size + '"')
    await fcall(pair, "2")
    heard = [each for each in await reader.notified(2) if each["type"] == "message"]
    assert [each["offset"] for each in heard] == [1, 2]


async def test_history_of_a_rule_that_changes_while_nodes_run(pair: Pair) -> None:
    """A new history is known to FCALL and the other node within seconds. One that a rule loses stays promised."""
    (first, registry), (second, _) = pair.nodes
    reader, writer = pair.client(0), pair.client(1)
    await reader.ask("pubsub", "subscribe", channel="bare", recover=True)
    await fcall(pair, "0")  # the function and the rules are there
    rules = [ChannelRule("room:*"), ChannelRule("bare", history=5)]
    await first.replace_rules([(registry["pubsub"], PubSubService(channels=rules))])
    # at once, the node itself: it keeps what any rule asks for
    assert first.channels.promised("pubsub", "bare", History(300.0, 5)) == History(300.0, 5)
    assert first.channels.promised("pubsub", "room:1", None) == History(300.0, 100)

    async def is_known() -> bool:
        return second.channels.promised("pubsub", "bare", None) == History(300.0, 5)

    await eventually(is_known, within_s=30, what="the other node has read the rules")
    name = NAME.replace("room:1", "bare")
    async with client_of(target_from_url(pair.server.url).of(name.encode()), timeout_s=10.0) as redis:
        assert await redis.execute_command("FCALL", "snorky_publish", 1, name, "1", "k") != b""
    await writer.ask("pubsub", "publish", channel="bare", message=2)
    found = await pair.client(0).ask("pubsub", "history", channel="bare")
    assert [(each["offset"], each["message"]) for each in found["messages"]] == [(1, 1), (2, 2)]
    heard = [each["message"] for each in await reader.notified(2) if each["type"] == "message"]
    assert heard == [1, 2]
    # the history that this node's rule has lost, but the other node's has not
    await reader.ask("pubsub", "subscribe", channel="room:1", recover=True)
    await pair.client(0).ask("pubsub", "publish", channel="room:1", message=3)
    assert first.channels.promised("pubsub", "room:1", None) == History(300.0, 100)
    kept = await writer.ask("pubsub", "history", channel="room:1")
    assert kept["messages"][-1]["message"] == 3
