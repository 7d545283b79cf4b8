"""Service.end_subscription: the gateway ends a client's subscription; every service has the generic method."""

from typing import Any

from snorky.gateway import CloseCode, Service
from snorky.services.chat import ChatService
from snorky.services.cursors import CursorsService
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import house, settle, until
from tests.support.fakes.memory_cluster import Resident, Town, town

RULES = [{"match": "room:*", "presence": True, "join_leave": True, "history": 10}]


def services() -> list[Service]:
    return [PubSubService(channels=RULES), ChatService(), CursorsService()]


def notice(channel: Any, code: str = "expired", reason: str = "The token expired") -> dict[str, str]:
    return {"type": "unsubscribed", "channel": channel, "code": code, "reason": reason}


def end(nodes: Town, client: Resident, service: str, channel: Any) -> bool:
    found = client.node.find_service(service)
    assert found is not None
    return found.end_subscription(client.connection, channel, "expired", "The token expired")


async def test_client_is_notified_last_and_may_subscribe_again() -> None:
    async with town(2, services) as nodes:
        ann, bob = nodes.client(0, "ann"), nodes.client(1, "bob")
        for client in (ann, bob):
            assert await client.ask("pubsub", "subscribe", channel="news") is None
        assert end(nodes, ann, "pubsub", "news") is True
        assert await bob.ask("pubsub", "publish", channel="news", message=1) is None
        await bob.hears({"type": "message", "channel": "news", "message": 1})
        assert ann.notifications == [notice("news")], "no publication after the notice"
        assert await ann.ask("pubsub", "subscribe", channel="news") is None
        assert await bob.ask("pubsub", "publish", channel="news", message=2) is None
        await ann.hears({"type": "message", "channel": "news", "message": 2})


async def test_client_without_the_subscription_is_not_notified() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        assert end(nodes, ann, "pubsub", "news") is False
        assert end(nodes, ann, "cursors", "news") is False
        assert ann.notifications == []


async def test_client_leaves_the_roster_and_others_are_notified() -> None:
    async with town(2, services) as nodes:
        ann, bob = nodes.client(0, "ann"), nodes.client(1, "bob")
        for client in (bob, ann):
            await client.ask("pubsub", "subscribe", channel="room:1")
            await client.ask("chat", "join", channel="lobby")
        assert end(nodes, ann, "pubsub", "room:1")
        assert end(nodes, ann, "chat", "lobby")
        await bob.hears({"type": "left", "channel": "room:1", "identity": "ann"})
        await until(lambda: any(each.get("status") == "left" for each in bob.notifications))
        assert await bob.ask("pubsub", "presence", channel="room:1") == {"members": ["bob"]}
        assert await ann.ask("chat", "send", channel="lobby", body="x") == "Error: Not joined"


async def test_cursors_of_the_document_are_removed() -> None:
    async with town(2, services) as nodes:
        ann, bob = nodes.client(0, "ann"), nodes.client(1, "bob")
        for client in (bob, ann):
            await client.ask("cursors", "join", document="d")
        await ann.ask("cursors", "join", document="e")
        create = {"position": 1, "status": "s"}
        removed = await ann.ask("cursors", "createCursor", privateHandle=1, document="d", **create)
        await ann.ask("cursors", "createCursor", privateHandle=2, document="e", **create)
        assert end(nodes, ann, "cursors", "d")
        gone = {"type": "cursorRemoved", "cursor": {"publicHandle": removed, "document": "d"}}
        await bob.hears(gone)
        assert await ann.ask("cursors", "removeCursor", privateHandle=1) == "Error: No such cursor"
        assert await ann.ask("cursors", "removeCursor", privateHandle=2) is None


async def test_subscription_in_progress_is_ended_and_the_call_fails() -> None:
    async with house(PubSubService()) as built:
        built.broker.gate.clear()
        client = built.client()
        client.send("pubsub", {"command": "subscribe", "params": {"channel": "news"}, "callId": 1})
        await settle()
        ended = built.registry["pubsub"].end_subscription(client.connection, "news", "expired", "The token expired")
        assert ended
        built.broker.gate.set()
        await client.received(2)
        assert client.messages == [
            notice("news"),
            {"type": "error", "callId": 1, "message": "Not subscribed", "code": "not_subscribed"},
        ]
        assert client.connection.channels == set()


async def test_room_whose_join_is_in_progress_is_left() -> None:
    async with town(1, services, late=8) as nodes:
        ann = nodes.client(0, "ann")
        call = ann.call("chat", "join", channel="lobby")
        await until(lambda: ann.connection.channels)
        assert end(nodes, ann, "chat", "lobby")
        assert await ann.answer(call) == "Error: Not subscribed"
        await settle(100)
        assert await nodes.nodes[0].ownership.directory.members("chat:lobby") == []


async def test_roster_is_left_later_if_redis_does_not_answer() -> None:
    async with town(2, services) as nodes:
        ann, bob = nodes.client(0, "ann"), nodes.client(1, "bob")
        for client in (bob, ann):
            await client.ask("pubsub", "subscribe", channel="room:1")
        with nodes.redis_unavailable():
            assert end(nodes, ann, "pubsub", "room:1"), "the subscription has ended"
            assert ann.notifications[-1] == notice("room:1")
        await bob.hears({"type": "left", "channel": "room:1", "identity": "ann"})


async def test_client_whose_outbox_is_too_small_for_the_notice_is_closed() -> None:
    async with house(PubSubService()) as built:
        client = built.client()
        client.connection._outbox_max_bytes = 150
        client.send("pubsub", {"command": "subscribe", "params": {"channel": "news"}})
        await client.received(1)
        ended = built.registry["pubsub"].end_subscription(client.connection, "news", "expired", "x" * 150)
        assert ended
        assert client.wire.closes[0][0] == CloseCode.SLOW_CONSUMER
