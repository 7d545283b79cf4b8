"""The primitives as services see them: over several nodes, with keys of their own, and with errors."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from snorky.gateway import (
    AlreadySubscribed,
    BrokerUnavailable,
    ConfigurationError,
    ConnectionClosed,
    InvalidChannel,
    InvalidMessage,
    NotSubscribed,
    Owner,
    Publication,
    Selector,
    Service,
)
from tests.support.fakes.fake_wire import house, settle, until
from tests.support.fakes.memory_cluster import Town, town


class Plain(Service):
    """A service that only exposes its primitives."""

    def on_message(self, connection: Any, message: Any) -> None: ...

    def roster_notice(self, channel: Any, member: Any, *, has_joined: bool, is_identity: bool) -> tuple[Any, Selector]:
        notice = {"type": "note", "who": member.identity, "joined": has_joined, "identity": is_identity, "at": channel}
        return notice, Selector()


def services() -> list[Service]:
    return [Plain("one"), Plain("other")]


def of(nodes: Town, number: int, name: str = "one") -> Service:
    return nodes.registries[number][name]


# -- topics -----------------------------------------------------------------------------------------------------------


async def test_node_receives_a_channel_without_clients_of_its_own() -> None:
    async with town(2, services) as nodes:
        heard: list[Publication] = []
        await of(nodes, 0).topics.listen("c", heard.extend)
        for number in (0, 1):
            assert await of(nodes, number).topics.publish("c", number) == 1
        await of(nodes, 1).topics.publish("c", 2, to=Selector(only_identity="x"))
        await of(nodes, 1, "other").topics.publish("c", "another service's")
        await until(lambda: len(heard) == 3)
        assert [each.payload for each in heard] == [b"0", b"1", b"2"]
        assert heard[2].selector == Selector(only_identity="x")
        of(nodes, 0).topics.unlisten("c")
        await of(nodes, 1).topics.publish("c", 3)
        await settle()
        assert len(heard) == 3
        assert nodes.brokers[0].subscribed == set()


async def test_second_listener_of_a_channel_is_refused_and_the_first_continues() -> None:
    async with town(1, services) as nodes:
        heard: list[Publication] = []
        topics = of(nodes, 0).topics
        await topics.listen("c", heard.extend)
        with pytest.raises(AlreadySubscribed):
            await topics.listen("c", lambda batch: None)
        await topics.publish("c", 1)
        await until(lambda: heard)
        topics.unlisten("c")
        with pytest.raises(NotSubscribed):
            topics.unlisten("c")


async def test_client_and_node_share_a_channel_and_either_may_leave_first() -> None:
    async with town(1, services) as nodes:
        topics, heard = of(nodes, 0).topics, list[Publication]()
        first, second = nodes.client(0), nodes.client(0)
        await topics.subscribe(first.connection, "c")
        await topics.listen("c", heard.extend)
        topics.unsubscribe(first.connection, "c")
        assert nodes.brokers[0].unsubscribed == []
        await topics.subscribe(second.connection, "c")
        topics.unlisten("c")
        assert nodes.brokers[0].unsubscribed == []
        await topics.publish("c", {"type": "note"})
        assert await second.notified(1) == [{"type": "note"}]
        topics.unsubscribe(second.connection, "c")
        assert nodes.brokers[0].unsubscribed == ["one:c"]
        assert heard == []


async def test_failed_listen_leaves_no_state() -> None:
    async with town(1, services) as nodes:
        topics = of(nodes, 0).topics
        nodes.brokers[0].is_failing = True
        with pytest.raises(BrokerUnavailable):
            await topics.listen("c", lambda batch: None)
        nodes.brokers[0].is_failing = False
        heard: list[Publication] = []
        await topics.listen("c", heard.extend)
        await topics.publish("c", 1)
        await until(lambda: heard)


@pytest.mark.parametrize("is_failing", [False, True])
async def test_unlisten_while_listen_waits_is_the_last_word(is_failing: bool) -> None:
    async with town(1, services) as nodes:
        topics, broker = of(nodes, 0).topics, nodes.brokers[0]
        broker.gate.clear()
        waiting = asyncio.ensure_future(topics.listen("c", lambda batch: None))
        await settle()
        topics.unlisten("c")
        broker.is_failing = is_failing
        broker.gate.set()
        (error,) = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(error, BrokerUnavailable) if is_failing else error is None
        assert broker.subscribed == set(), "otherwise the broker would stay subscribed without a subscriber"


async def test_failure_of_the_first_listener_does_not_remove_a_later_one() -> None:
    async with town(1, services) as nodes:
        topics, broker, heard = of(nodes, 0).topics, nodes.brokers[0], list[Publication]()
        broker.gate.clear()
        waiting = asyncio.ensure_future(topics.listen("c", lambda batch: None))
        await settle()
        topics.unlisten("c")
        second = asyncio.ensure_future(topics.listen("c", heard.extend))
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        broker.gate.set()
        await second
        await topics.publish("c", 1)
        await until(lambda: heard)


async def test_publications_during_a_join_wait_for_the_reply_and_arrive_in_order() -> None:
    async with town(2, services) as nodes:
        topics, client = of(nodes, 0).topics, nodes.client(0)
        async with topics.atomic_subscribe(client.connection, "c"):
            assert topics.is_subscribed(client.connection, "c")
            for number in range(3):
                await of(nodes, 1).topics.publish("c", {"type": "note", "n": number})
            await settle()
            assert client.inbox == []
        client.connection.send({"service": "one", "message": {"type": "response", "callId": 1}})
        await of(nodes, 1).topics.publish("c", {"type": "note", "n": 3})
        await client.notified(4)
        assert [each.get("n", "reply") for each in client.inbox] == ["reply", 0, 1, 2, 3]


async def test_joining_that_fails_is_undone_also_when_the_client_left_meanwhile() -> None:
    async with town(1, services) as nodes:
        topics, client, leaver = of(nodes, 0).topics, nodes.client(0), nodes.client(0)
        for each in (client, leaver):
            with pytest.raises(KeyError):
                async with topics.atomic_subscribe(each.connection, "c"):
                    if each is leaver:
                        each.leave()
                    raise KeyError
        assert nodes.nodes[0].counts["subscriptions"] == 0
        assert nodes.brokers[0].subscribed == set()
        await topics.subscribe(client.connection, "c")
        await topics.publish("c", {"type": "note"})
        await client.notified(1)


# -- rosters ----------------------------------------------------------------------------------------------------------


async def test_roster_is_the_same_from_every_node_and_another_services_is_another() -> None:
    async with town(3, services) as nodes:
        clients = [nodes.client(number, identity) for number, identity in enumerate(("b", "a", "b"))]
        for number, client in enumerate(clients):
            entered = await of(nodes, number).rosters.enter(client.connection, "c", entry=f"e{number}", data=number)
            assert entered.is_first == (number < 2)
        for number in range(3):
            members = await of(nodes, number).rosters.members("c")
            assert [(each.identity, each.entry, each.data) for each in members] == [
                ("a", "e1", 1),
                ("b", "e0", 0),
                ("b", "e2", 2),
            ]
        assert members == entered.members
        assert await of(nodes, 0, "other").rosters.members("c") == []
        assert await of(nodes, 0).rosters.leave(clients[0].connection, "c", entry="e0")
        assert not await of(nodes, 0).rosters.leave(clients[0].connection, "c", entry="e0")


async def test_notices_on_the_rosters_channel_name_the_member_and_if_it_is_the_first() -> None:
    async with town(2, services) as nodes:
        watcher, other = nodes.client(0), nodes.client(0)
        await of(nodes, 0).topics.subscribe(watcher.connection, {"c": 1})
        await of(nodes, 0, "other").topics.subscribe(other.connection, {"c": 1})
        bob = nodes.client(1, "bob")
        rosters = of(nodes, 1).rosters
        for entry in ("x", "y"):
            await rosters.enter(bob.connection, {"c": 1}, entry=entry)
        await rosters.enter(bob.connection, {"c": 1}, entry="y", data="again: no notice")
        notice = ({"type": "note", "who": "moved"}, Selector())
        assert await rosters.update(bob.connection, {"c": 1}, entry="x", data=1, notice=notice)
        assert not await rosters.update(bob.connection, {"c": 1}, entry="z", data=1, notice=notice)
        bob.leave()
        notes = await watcher.notified(5)
        assert [(each["who"], each.get("joined"), each.get("identity")) for each in notes] == [
            ("bob", True, True),
            ("bob", True, False),
            ("moved", None, None),
            ("bob", False, False),
            ("bob", False, True),
        ]
        assert {str(each.get("at", {"c": 1})) for each in notes} == {"{'c': 1}"}
        assert other.notifications == []


# -- names, direct, tokens --------------------------------------------------------------------------------------------


async def test_names_of_two_services_are_apart_and_any_entity() -> None:
    async with town(2, services) as nodes:
        first, second = nodes.client(0), nodes.client(1)
        names = [of(nodes, number).names for number in (0, 1)]
        assert await names[0].claim(first.connection, {"n": 1})
        assert not await names[1].claim(second.connection, {"n": 1.0})
        assert await of(nodes, 1, "other").names.claim(second.connection, {"n": 1})
        owner = await names[1].find({"n": 1})
        assert owner is not None and owner.connection_id == first.connection.id
        assert await names[1].find("n") is None
        assert await names[0].list() == [{"n": 1}]
        assert names[0].is_held(first.connection, {"n": 1.0})
        assert not of(nodes, 0, "other").names.is_held(first.connection, {"n": 1})
        assert (names[0].count(first.connection), of(nodes, 0, "other").names.count(first.connection)) == (1, 0)
        assert not await names[1].release(second.connection, {"n": 1})
        assert await names[0].release(first.connection, {"n": 1})
        assert await names[0].find({"n": 1}) is None


async def test_direct_message_is_taken_in_order_by_a_connection_anywhere_and_refused_for_one_that_went() -> None:
    async with town(2, services) as nodes:
        client = nodes.client(1)
        await of(nodes, 1).names.claim(client.connection, "n")
        owner = await of(nodes, 0).names.find("n")
        assert owner is not None
        for number in range(3):
            assert await of(nodes, 0).direct.send(owner, {"type": "note", "n": number})
        assert [each["n"] for each in client.notifications] == [0, 1, 2]
        assert client.envelopes[0]["service"] == "one"
        with pytest.raises(InvalidMessage):
            await of(nodes, 0).direct.send(owner, {"no JSON": object()})
        client.leave()
        assert not await of(nodes, 0).direct.send(owner, 1)
        assert not await of(nodes, 0).direct.send(Owner("nowhere", "i", 1), 1)


async def test_token_is_taken_once_on_any_node() -> None:
    async with town(2, services) as nodes:
        token = await of(nodes, 0).tokens.put({"x": [1]}, ttl_s=60)
        assert len(token) == 32
        assert await of(nodes, 1, "other").tokens.take(token) == {"x": [1]}
        assert await of(nodes, 0).tokens.take(token) is None
        assert await of(nodes, 0).tokens.take("nonsense") is None


# -- faults -----------------------------------------------------------------------------------------------------------


async def test_directory_that_does_not_answer_is_an_error() -> None:
    async with town(1, services) as nodes:
        service, client = of(nodes, 0), nodes.client(0)
        nodes.cluster.is_failing = True
        asked: Sequence[Any] = [
            service.rosters.enter(client.connection, "c"),
            service.rosters.members("c"),
            service.names.claim(client.connection, "n"),
            service.names.find("n"),
            service.names.list(),
            service.direct.send(Owner("n0", "i", 1), 1),
            service.tokens.put(1, ttl_s=1),
            service.tokens.take("t"),
        ]
        for each in asked:
            with pytest.raises(BrokerUnavailable):
                await each
        nodes.cluster.is_failing = False
        await until(lambda: nodes.nodes[0].ownership._release_task is None)


async def test_name_without_canonical_form_is_refused_before_anything_is_asked() -> None:
    async with town(1, services) as nodes:
        service, client = of(nodes, 0), nodes.client(0)
        for name in ("x" * 254, 2**53):
            with pytest.raises(InvalidChannel):
                await service.names.claim(client.connection, name)
            with pytest.raises(InvalidChannel):
                await service.rosters.enter(client.connection, name)
        assert nodes.cluster.names == {} and nodes.cluster.rosters == {}


async def test_disconnected_client_owns_nothing() -> None:
    async with town(1, services) as nodes:
        service, client = of(nodes, 0), nodes.client(0)
        client.leave()
        with pytest.raises(ConnectionClosed):
            await service.rosters.enter(client.connection, "c")
        with pytest.raises(ConnectionClosed):
            await service.names.claim(client.connection, "n")
        assert not await service.names.release(client.connection, "n")
        assert service.names.count(client.connection) == 0


async def test_node_without_a_directory_has_only_topics_and_a_clear_error() -> None:
    service = Plain("one")
    async with house(service) as built:
        await service.topics.publish("c", 1)
        with pytest.raises(ConfigurationError, match="no directory"):
            await service.names.claim(built.client().connection, "n")
