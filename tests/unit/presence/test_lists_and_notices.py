"""A list of members, and notices of joins and leaves: together they report each change exactly once."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from snorky.gateway import PAYLOAD, Connection, Service
from snorky.gateway.contracts.directory import RosterSnapshot
from snorky.gateway.delivery.hub import LATE_S, Hub, RosterEvent
from snorky.gateway.protocol.splicing import Template
from snorky.services.chat import ChatService
from snorky.services.cursors import CursorsService
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import JSON, FakeTransport, settle, until
from tests.support.fakes.memory_cluster import Resident, Town, town

RULES = [
    {"match": "there:*", "presence": True, "join_leave": True},
    {"match": "kept:*", "presence": True, "join_leave": True, "history": 100},
]
PEOPLE = [f"person {number:02d}" for number in range(24)]


def services() -> list[Service]:
    return [ChatService(), CursorsService(), PubSubService(channels=RULES)]


def follow(client: Resident) -> set[str]:
    """Apply a client's list and changes, as a program does. Checks that no change comes twice."""
    here: set[str] = set()
    for message in client.inbox:
        data = message.get("data")
        if message["type"] == "response" and isinstance(data, dict):
            here = set(data.get("members", ())) | {each["owner"] for each in data.get("cursors", ())}
        elif message["type"] in ("joined", "cursorAdded") or message.get("status") == "joined":
            who = message.get("identity") or message.get("from") or message["cursor"]["owner"]
            assert who not in here, f"{who} came twice to {client.connection.identity}: {client.inbox}"
            here.add(who)
        elif message["type"] == "left" or message.get("status") == "left":
            who = message.get("identity") or message["from"]
            assert who in here, f"{who} left twice for {client.connection.identity}"
            here.discard(who)
    return here


@pytest.mark.parametrize("seed", range(5))
async def test_a_crowd_that_joins_at_once_gets_each_member_once(seed: int) -> None:
    """Notices use another connection than lists: some are late."""
    async with town(3, services, late=5, seed=seed) as nodes:
        crowd = [nodes.client(number, identity) for number, identity in enumerate(PEOPLE)]
        nodes.brokers[0].hold()
        calls = [client.call("chat", "join", channel="room") for client in crowd[:12]]
        await settle(seed)
        calls += [client.call("chat", "join", channel="room") for client in crowd[12:]]
        for client, call in zip(crowd, calls, strict=True):
            await client.answer(call)
        nodes.brokers[0].let_go()
        await until(lambda: all(follow(client) == set(PEOPLE) for client in crowd))
        await settle(50)
        assert all(follow(client) == set(PEOPLE) for client in crowd)


async def test_late_notices_of_members_in_the_list_are_not_sent() -> None:
    async with town(2, services) as nodes:
        watcher = nodes.client(0, "watcher")
        await watcher.ask("chat", "join", channel="room")
        nodes.brokers[0].hold()
        await nodes.client(1, "ann").ask("chat", "join", channel="room")
        late = nodes.client(0, "late")
        assert (await late.ask("chat", "join", channel="room"))["members"] == ["ann", "late", "watcher"]
        await nodes.client(1, "bob").ask("chat", "join", channel="room")
        nodes.brokers[0].let_go()
        await until(lambda: follow(late) == {"ann", "bob", "late", "watcher"} == follow(watcher))
        assert [each["from"] for each in late.notifications] == ["bob"]


async def test_late_notices_of_cursors_in_the_list_are_not_sent() -> None:
    async with town(2, services) as nodes:
        author, watcher = nodes.client(1, "ann"), nodes.client(0, "watcher")
        for client in (author, watcher):
            await client.ask("cursors", "join", document=1)
        nodes.brokers[0].hold()
        for handle in ("a", "b"):
            await author.ask("cursors", "createCursor", privateHandle=handle, document=1, position=0, status=0)
        await author.ask("cursors", "updateCursor", privateHandle="a", newData={"position": 1})
        late = nodes.client(0, "late")
        listed = (await late.ask("cursors", "join", document=1))["cursors"]
        assert sorted(each["position"] for each in listed) == [0, 1]
        await author.ask("cursors", "updateCursor", privateHandle="b", newData={"position": 2})
        nodes.brokers[0].let_go()
        await watcher.notified(4)
        (told,) = await late.notified(1)
        assert (told["type"], told["cursor"]["position"]) == ("cursorUpdated", 2)


@pytest.mark.parametrize(("channel", "recover"), [("there:a", None), ("kept:a", None), ("kept:a", True)])
async def test_presence_is_ordered_between_earlier_and_later_notices(channel: str, recover: Any) -> None:
    async with town(2, services) as nodes:
        client = nodes.client(0, "client")
        await client.ask("pubsub", "subscribe", channel=channel, recover=recover)
        await nodes.client(1, "ann").ask("pubsub", "subscribe", channel=channel)
        nodes.brokers[0].hold()
        await nodes.client(1, "bob").ask("pubsub", "subscribe", channel=channel)  # in the list; its notice comes late
        gate, is_asked = asyncio.Event(), asyncio.Event()
        listed = nodes.directories[0].listed

        async def gated(roster: str) -> RosterSnapshot:
            census = await listed(roster)
            is_asked.set()
            await gate.wait()
            return census

        nodes.directories[0].listed = gated  # type: ignore[method-assign]  # the answer comes late
        call = client.call("pubsub", "presence", channel=channel)
        await is_asked.wait()
        await nodes.client(1, "carol").ask("pubsub", "subscribe", channel=channel)  # not in the list
        nodes.brokers[0].let_go()
        await settle()
        gate.set()
        assert (await client.answer(call))["members"] == ["ann", "bob", "client"]
        await until(lambda: follow(client) == {"ann", "bob", "carol", "client"})
        answered = next(at for at, each in enumerate(client.inbox) if each.get("callId") == call)
        behind = [each["identity"] for each in client.inbox[answered + 1 :]]
        assert behind == ["carol"]


async def _away(nodes: Town, during: Callable[[], Any]) -> None:
    """Node 0 receives nothing, is taken for dead, and returns; the block runs before it registers its members again."""
    broker, directory, cluster = nodes.brokers[0], nodes.directories[0], nodes.cluster
    broker.is_lossy = True
    cluster.give_back(lambda owner: owner.node_id == "n0", nodes.nodes[1].ownership)
    await settle()
    broker.is_lossy = False
    await during()
    directory._incarnation = "another"
    directory.assert_all(is_quiet=False)


@pytest.mark.parametrize("is_compared", [False, True])
async def test_members_in_the_list_are_not_reported_as_joined_again(is_compared: bool) -> None:
    """A node that received nothing missed that its members were reported as left elsewhere, and as joined again."""
    async with town(2, services) as nodes:
        here = [nodes.client(0, "ann"), nodes.client(0, "bob")]
        other = nodes.client(1, "other")
        for client in (*here, other):
            await client.ask("chat", "join", channel="room")
        await settle(50)
        newcomer = nodes.client(0, "newcomer")

        async def during() -> None:
            if is_compared:  # the roster lacks them, and they are suspected to have left
                nodes.nodes[0].on_interrupted()
                await settle(50)
            listed = await newcomer.ask("chat", "join", channel="room")
            assert listed["members"] == ["newcomer", "other"]

        await _away(nodes, during)
        nodes.nodes[0].on_interrupted()
        await settle(100)
        for client in here:
            assert follow(client) == {"ann", "bob", "newcomer", "other"}
        assert follow(newcomer) == {"ann", "bob", "newcomer", "other"}, "whose list lacked them"
        assert [(each["from"], each["status"]) for each in other.notifications][-2:] == [
            ("ann", "joined"),
            ("bob", "joined"),
        ]


async def test_differences_are_not_sent_to_clients_whose_later_list_had_them() -> None:
    async with town(2, services) as nodes:
        watcher = nodes.client(0, "watcher")
        await watcher.ask("chat", "join", channel="room")
        await settle(50)
        nodes.brokers[0].is_lossy = True
        await nodes.client(1, "ann").ask("chat", "join", channel="room")
        late = nodes.client(0, "late")
        assert (await late.ask("chat", "join", channel="room"))["members"] == ["ann", "late", "watcher"]
        nodes.brokers[0].is_lossy = False
        nodes.nodes[0].on_interrupted()
        await until(lambda: follow(watcher) == {"ann", "late", "watcher"})
        await settle(50)
        assert late.notifications == []


def test_a_redis_clock_that_was_set_back_suppresses_notices_only_briefly() -> None:
    hub = Hub()
    client = Connection(FakeTransport(), JSON, node_id="n", serial=1)
    hub.add(client, "chat:x", Template("chat", PAYLOAD))
    channel = hub.get("chat:x")
    assert channel is not None
    channel.knows(client, 1000, now_s=50.0)
    assert not channel.audience(None, RosterEvent(900), 50.0 + LATE_S - 0.1)(client)
    assert channel.audience(None, RosterEvent(900), 50.0 + LATE_S)(client)
    channel.heard = 1000
    assert channel.audience(None, RosterEvent(900), 50.0)(client), "the list's change was received: this is another one"
    hub.remove(client, "chat:x")
    assert channel.listed == {}
