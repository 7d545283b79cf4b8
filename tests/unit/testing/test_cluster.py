"""The cluster in memory that authors of services test with: clients, deadlines, and faults of the nodes."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from snorky.gateway import ChannelRule, Connection, Limits, Service
from snorky.gateway.testing import CallFailed, MemoryCluster, NotReceived, memory_cluster, settle
from snorky.services.chat import ChatService
from snorky.services.messaging import MessagingService
from snorky.services.pubsub import PubSubService

NOW_S = 0.05


def pubsub() -> list[Service]:
    return [PubSubService("pubsub", channels=[ChannelRule("kept:*", history=10)])]


def news(channel: str, text: str) -> dict[str, Any]:
    return {"type": "message", "channel": channel, "message": text}


async def publish(cluster: MemoryCluster, channel: str, *texts: str) -> None:
    client = await cluster.connect(node=0)
    for text in texts:
        await client.call("pubsub", "publish", channel=channel, message=text)


async def test_client_of_one_node_receives_what_a_client_of_another_publishes() -> None:
    async with memory_cluster(3, pubsub) as cluster:
        alice = await cluster.connect(node=2, identity="alice")
        assert await alice.call("pubsub", "subscribe", channel="a") is None
        await publish(cluster, "a", "one", "two")
        assert await alice.next_message() == news("a", "one")
        assert await alice.next_message("pubsub") == news("a", "two")
        assert alice.unread == []
        assert [envelope["service"] for envelope in alice.envelopes] == ["pubsub"] * 3


async def test_refused_call_raises_the_code_and_text_of_the_error() -> None:
    async with memory_cluster(1, pubsub) as cluster:
        client = await cluster.connect()
        with pytest.raises(CallFailed) as caught:
            await client.call("pubsub", "unsubscribe", channel="a")
        assert (caught.value.code, caught.value.text) == ("not_subscribed", "Not subscribed")
        assert caught.value.reply["callId"] == 1


async def test_replies_of_concurrent_calls_each_reach_their_caller() -> None:
    async with memory_cluster(2, lambda: [ChatService("chat")]) as cluster:
        alice = await cluster.connect(node=1, identity="alice")
        joined = await asyncio.gather(*(alice.call("chat", "join", channel=room) for room in "abc"))
        assert joined == [{"members": ["alice"]}] * 3


async def test_message_that_does_not_arrive_is_named_with_what_came_instead() -> None:
    async with memory_cluster(1, pubsub, deadline_s=NOW_S) as cluster:
        client = await cluster.connect(identity="alice")
        await client.call("pubsub", "subscribe", channel="a")
        await publish(cluster, "a", "one")
        with pytest.raises(NotReceived) as caught:
            await client.next_message("chat")
        text = str(caught.value)
        assert "alice of node n0" in text and "a message of the service chat did not arrive in 0.05 s" in text
        assert "1 unread messages" in text and "'one'" in text


async def test_call_that_is_never_answered_names_service_and_command() -> None:
    class Silent(Service):
        def on_message(self, connection: Connection, message: Any) -> None:
            """Nothing."""

    async with memory_cluster(1, lambda: [Silent("silent")], deadline_s=NOW_S) as cluster:
        client = await cluster.connect()
        with pytest.raises(NotReceived, match=r"the reply to silent\.ask did not arrive"):
            await client.call("silent", "ask")


async def test_end_of_the_connection_ends_a_wait_and_keeps_what_arrived_before() -> None:
    class Closer(Service):
        def on_message(self, connection: Connection, message: Any) -> None:
            self.send(connection, "goodbye")
            connection.close(4321, "enough")

    async with memory_cluster(1, lambda: [Closer("closer")]) as cluster:
        client = await cluster.connect()
        client.send("closer", "end")
        assert await client.closed() == 4321
        assert await client.next_message() == "goodbye"
        with pytest.raises(NotReceived, match="closed with 4321 before a message"):
            await client.next_message()
        assert list(cluster.nodes[0].connections) == []
        client.send("closer", "again")
        assert client.unread == []


async def test_service_sees_the_identity_when_its_client_connects() -> None:
    seen = []

    class Greeter(Service):
        def on_connect(self, connection: Connection) -> None:
            seen.append(connection.identity)

        def on_message(self, connection: Connection, message: Any) -> None:
            """Nothing."""

    async with memory_cluster(1, lambda: [Greeter("greeter")], requires_identity=True) as cluster:
        await cluster.connect(identity="alice")
    assert seen == ["alice"]


async def test_limits_apply_that_the_test_asks_for() -> None:
    async with memory_cluster(1, pubsub, limits=Limits(messages_per_s=1, messages_burst=1)) as cluster:
        client = await cluster.connect()
        await client.call("pubsub", "subscribe", channel="a")
        with pytest.raises(CallFailed) as caught:
            await client.call("pubsub", "subscribe", channel="b")
        assert caught.value.code == "rate_limited"


async def test_killed_node_closes_its_clients_and_the_others_are_told_that_they_left() -> None:
    async with memory_cluster(3, lambda: [ChatService("chat"), MessagingService("messaging")]) as cluster:
        alice, bob = await cluster.connect(0, "alice"), await cluster.connect(1, "bob")
        await bob.call("chat", "join", channel="room")
        await alice.call("chat", "join", channel="room")
        cluster.kill(1)
        assert await bob.closed() == 1006
        left = await alice.next_message("chat")
        assert (left["type"], left["from"], left["status"]) == ("presence", "bob", "left")
        carol = await cluster.connect(2, "carol")
        assert await carol.call("chat", "join", channel="room") == {"members": ["alice", "carol"]}


async def test_client_that_disconnects_leaves_its_rosters() -> None:
    async with memory_cluster(2, lambda: [ChatService("chat")]) as cluster:
        alice, bob = await cluster.connect(0, "alice"), await cluster.connect(1, "bob")
        await alice.call("chat", "join", channel="room")
        await bob.call("chat", "join", channel="room")
        assert (await alice.next_message())["status"] == "joined"
        bob.disconnect()
        assert (await alice.next_message())["status"] == "left"
        assert bob.close_code == 1000


async def test_delayed_messages_arrive_after_the_block_in_order() -> None:
    async with memory_cluster(2, pubsub) as cluster:
        client = await cluster.connect(node=1)
        await client.call("pubsub", "subscribe", channel="a")
        with cluster.messages_delayed(node=1):
            await publish(cluster, "a", "one", "two")
            await cluster.settle()
            assert client.unread == []
        assert [await client.next_message() for _ in range(2)] == [news("a", "one"), news("a", "two")]


async def test_lost_messages_are_repaired_from_a_history_and_else_missing() -> None:
    async with memory_cluster(2, pubsub) as cluster:
        client = await cluster.connect(node=1)
        for channel in ("a", "kept:a"):
            await client.call("pubsub", "subscribe", channel=channel)
        with cluster.messages_lost(node=1):
            await publish(cluster, "a", "lost")
            await publish(cluster, "kept:a", "repaired")
            await settle()
            assert client.unread == []
        assert await client.next_message() == news("kept:a", "repaired")
        await settle()
        assert client.unread == []


async def test_calls_fail_while_redis_is_unavailable_and_work_afterwards() -> None:
    async with memory_cluster(2, pubsub) as cluster:
        client = await cluster.connect(node=1)
        with cluster.redis_unavailable(), pytest.raises(CallFailed) as caught:
            await client.call("pubsub", "subscribe", channel="a")
        assert caught.value.code == "unavailable"
        await client.call("pubsub", "subscribe", channel="a")
        await publish(cluster, "a", "one")
        assert await client.next_message() == news("a", "one")


def test_it_needs_no_test_framework() -> None:
    program = "import sys, snorky.gateway.testing; print([name for name in sys.modules if 'pytest' in name])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
