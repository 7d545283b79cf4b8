"""Control: orders reach the right connections of every node once, and the answer says where."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway import BrokerUnavailable, Connection, LimitExceeded, Reached, Service
from snorky.gateway.contracts.control import ControlOrder
from snorky.gateway.sdk import control as module
from snorky.services.chat import ChatService
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import house, settle, until
from tests.support.fakes.memory_cluster import Resident, Town, town


def services() -> list[Service]:
    return [PubSubService(), ChatService()]


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.2)


async def subscribed(nodes: Town, number: int, identity: str | None, *channels: Any) -> Resident:
    client = nodes.client(number, identity)
    for channel in channels:
        assert await client.ask("pubsub", "subscribe", channel=channel) is None
    return client


def ended(*channels: Any) -> list[dict[str, str]]:
    return [{"type": "unsubscribed", "channel": each, "code": "unsubscribed", "reason": "why"} for each in channels]


def closes(client: Resident) -> list[tuple[int, str]]:
    return client.wire.closes


async def test_an_identity_is_disconnected_on_every_node() -> None:
    async with town(3, services) as nodes:
        ann = [nodes.client(number, "ann") for number in (0, 0, 2)]
        others = [nodes.client(0, "bob"), nodes.client(1)]
        reached = await nodes.nodes[1].control.give("disconnect", identity="ann", code=4500, reason="why")
        assert reached == Reached({"n0": 2, "n1": 0, "n2": 1}, [])
        assert reached.connections == 3
        assert [closes(client) for client in ann] == [[(4500, "why")]] * 3
        assert [closes(client) for client in others] == [[], []]


async def test_channels_are_counted_on_all_nodes_by_pattern_and_by_name() -> None:
    async with town(3, services) as nodes:
        await subscribed(nodes, 0, None, "news", "sport", "a*")
        await subscribed(nodes, 2, None, "news", "ab")
        await subscribed(nodes, 1, None, *(f"many{number:03}" for number in range(250)))
        look = nodes.nodes[1].control.look
        counts = [{"channel": "a*", "subscribers": 1}, {"channel": "news", "subscribers": 2}]
        found = await look("channels", service="pubsub", names=["news", "none", "a*"], limit=3)
        assert (found.entries, found.missing, found.last) == (counts, [], None)
        found = await look("channels", service="chat", names=["news"], limit=1)
        assert found.entries == []
        found = await look("channels", service="pubsub", pattern="*", limit=2)
        assert [each["channel"] for each in found.entries] == ["a*", "ab"] and found.last == "ab"
        found = await look("channels", service="pubsub", pattern="many*", limit=module.CHANNELS_MAX)
        assert len(found.entries) == 250 and found.last is None


async def test_code_to_reconnect_is_passed_on_and_no_other_one() -> None:
    async with town(1, services) as nodes:
        for code, expected in ((4000, 4000), (1000, 4500), (0, 4500)):
            client = nodes.client(0, "ann")
            await nodes.nodes[0].control.give("disconnect", identity="ann", code=code, reason="why")
            assert closes(client) == [(expected, "why")]


async def test_client_that_shall_reconnect_is_closed_only_when_all_nodes_have_read_the_order() -> None:
    async with town(2, services) as nodes:
        ann = nodes.client(0, "ann")
        nodes.control_logs[0].spread_s = 0.05
        ordering = asyncio.create_task(nodes.nodes[1].control.give("disconnect", identity="ann", code=4000))
        await settle()
        assert closes(ann) == []
        again = nodes.client(1, "ann")
        assert await ordering == Reached({"n0": 1, "n1": 0}, [])
        assert (closes(ann), closes(again)) == ([(4000, "")], [])


async def test_one_connection_is_reached_and_only_its_node_is_expected_to_answer() -> None:
    async with town(2, services) as nodes:
        ann, twin = nodes.client(0, "ann"), nodes.client(0, "ann")
        with nodes.orders_delayed(1):
            reached = await nodes.nodes[0].control.give("disconnect", connection_id=ann.connection.id, code=4500)
        assert reached == Reached({"n0": 1}, [])
        assert (len(closes(ann)), len(closes(twin))) == (1, 0)
        for missing in ("n7.1", "n0.99", "n0", "x", ""):
            assert (await nodes.nodes[0].control.give("disconnect", connection_id=missing)).connections == 0


async def test_everyone_on_a_channel_is_unsubscribed() -> None:
    async with town(2, services) as nodes:
        a = await subscribed(nodes, 0, "ann", "news", "sport")
        b = await subscribed(nodes, 1, None, "news")
        c = await subscribed(nodes, 1, "cid", "sport")
        give = nodes.nodes[0].control.give
        reached = await give("unsubscribe", service="pubsub", channel="news", reason="why")
        assert reached == Reached({"n0": 1, "n1": 1}, [])
        assert [client.notifications for client in (a, b, c)] == [ended("news"), ended("news"), []]
        assert a.connection.channels == {"pubsub:sport"}


async def test_an_identity_is_unsubscribed_from_one_channel_or_from_all_of_a_service() -> None:
    async with town(2, services) as nodes:
        a = await subscribed(nodes, 0, "ann", "news", "sport", None)
        b = await subscribed(nodes, 1, "ann", "sport")
        c = await subscribed(nodes, 1, "cid", "news", "sport")
        await a.ask("chat", "join", channel="lobby")
        give = nodes.nodes[0].control.give
        reached = await give("unsubscribe", service="pubsub", identity="ann", channel="news", reason="why")
        assert reached == Reached({"n0": 1, "n1": 0}, [])
        reached = await give("unsubscribe", service="pubsub", identity="ann", reason="why")
        assert reached == Reached({"n0": 1, "n1": 1}, [])
        assert a.notifications[0] == ended("news")[0]
        assert sorted(map(str, a.notifications[1:])) == sorted(map(str, ended("sport", None)))
        assert b.notifications == ended("sport") and c.notifications == []
        assert a.connection.channels == {"chat:lobby"}, "another service's channels stay"


async def test_all_criteria_must_match() -> None:
    async with town(1, services) as nodes:
        ann, bob = await subscribed(nodes, 0, "ann", "news"), await subscribed(nodes, 0, "bob", "news")
        give = nodes.nodes[0].control.give
        for mismatch in (
            {"identity": "ann", "connection_id": bob.connection.id},
            {"identity": "ann", "channel": "other"},
            {"connection_id": bob.connection.id, "channel": "other"},
            {"identity": "ANN"},
            {},  # no criteria
        ):
            assert (await give("disconnect", service="pubsub", **mismatch)).connections == 0  # type: ignore[arg-type]
        match = {"identity": "ann", "connection_id": ann.connection.id, "channel": "news"}
        assert (await give("disconnect", service="pubsub", **match)).connections == 1  # type: ignore[arg-type]
        assert not closes(bob)


async def test_a_node_that_does_not_answer_is_named_and_obeys_once_it_is_back() -> None:
    async with town(3, services) as nodes:
        ann = [await subscribed(nodes, number, "ann", "news") for number in range(3)]
        with nodes.orders_delayed(2):
            reached = await nodes.nodes[0].control.give("unsubscribe", service="pubsub", identity="ann", reason="why")
            assert reached == Reached({"n0": 1, "n1": 1}, ["n2"])
            await settle()
            assert [client.notifications for client in ann] == [ended("news"), ended("news"), []]
        await ann[2].hears(ended("news")[0])


async def test_an_order_that_is_reported_again_is_not_carried_out_again() -> None:
    async with town(1, services) as nodes:
        ann = await subscribed(nodes, 0, "ann", "news")
        await nodes.nodes[0].control.give("unsubscribe", service="pubsub", identity="ann", reason="why")
        assert await ann.ask("pubsub", "subscribe", channel="news") is None
        nodes.nodes[0].control._on_orders(nodes.orders.orders)
        await settle()
        assert ann.notifications == ended("news") and ann.connection.channels


async def test_a_node_that_may_have_missed_orders_closes_its_clients() -> None:
    async with town(2, services) as nodes:
        clients = [nodes.client(0, "ann"), nodes.client(0)]
        other = nodes.client(1, "ann")
        with capture_logs() as logs:
            nodes.nodes[0].control._on_missed()
        assert [closes(client) for client in clients] == [[(4000, "Come back")]] * 2
        assert closes(other) == []
        assert logs[0]["connections"] == 2


async def test_an_error_of_one_subscription_does_not_save_the_others() -> None:
    class Faulty(PubSubService):
        def end_subscription(self, connection: Connection, channel: Any, code: str, reason: str) -> bool:
            if connection.identity == "bad":
                raise RuntimeError("broken")
            return super().end_subscription(connection, channel, code, reason)

    async with town(1, lambda: [Faulty()]) as nodes:
        clients = [await subscribed(nodes, 0, name, "news") for name in ("ann", "bad", "cid")]
        with capture_logs() as logs:
            reached = await nodes.nodes[0].control.give("unsubscribe", service="pubsub", channel="news", reason="why")
        assert reached == Reached({"n0": 2}, [])
        assert [each["event"] for each in logs] == ["subscription not ended"]
        assert clients[2].notifications == ended("news")


async def test_more_connections_than_one_step_handles_are_all_reached() -> None:
    async with town(1, services) as nodes:
        clients = [await subscribed(nodes, 0, "ann", "news") for _ in range(2 * module.CHUNK + 3)]
        give = nodes.nodes[0].control.give
        assert (await give("unsubscribe", service="pubsub", identity="ann")).connections == len(clients)
        assert (await give("disconnect", identity="ann")).connections == len(clients)


async def test_a_node_without_the_service_reaches_nobody() -> None:
    async with town(1, services) as nodes:
        await subscribed(nodes, 0, "ann", "news")
        assert (await nodes.nodes[0].control.give("unsubscribe", service="other", identity="ann")).nodes == {"n0": 0}


async def test_without_redis_the_order_fails() -> None:
    async with town(1, services) as nodes:
        with nodes.redis_unavailable(), pytest.raises(BrokerUnavailable):
            await nodes.nodes[0].control.give("disconnect", identity="ann")


async def test_results_that_cannot_be_read_or_written_leave_nodes_missing() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        log = nodes.control_logs[0]

        async def add(order: ControlOrder) -> frozenset[str]:
            found = await type(log).add(log, order)
            nodes.orders.is_failing = True
            return found

        log.add = add  # type: ignore[method-assign]
        with capture_logs() as logs:
            reached = await nodes.nodes[0].control.give("disconnect", identity="ann", reason="why")
        assert reached == Reached({}, ["n0"])
        assert closes(ann) == [(4500, "why")]
        assert "control order carried out, not acknowledged" in [each["event"] for each in logs]


async def test_calls_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AWAITED_MAX", 2)
    async with town(2, services) as nodes:
        control = nodes.nodes[0].control
        with nodes.orders_delayed(1):
            waiting = [asyncio.create_task(control.give("disconnect", identity="ann")) for _ in range(2)]
            await until(lambda: control._awaited == 2)
            with pytest.raises(LimitExceeded, match="Too many control calls"):
                await control.give("disconnect", identity="ann")
            assert [(await each).missing for each in waiting] == [["n1"]] * 2
        assert not (await control.give("disconnect", identity="ann")).missing


async def test_a_node_without_redis_reaches_its_own_clients() -> None:
    async with house(PubSubService()) as built:
        client = built.client()
        client.connection.identity = "ann"
        assert await built.node.control.give("disconnect", identity="ann") == Reached({"n1": 1}, [])
        assert client.wire.closes == [(4500, "")]


async def test_memory_of_known_orders_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ORDERS_MAX", 5)
    async with town(1, services) as nodes:
        control = nodes.nodes[0].control
        control._on_orders([ControlOrder(str(number), "disconnect", identity="x") for number in range(30)])
        await settle()
        assert list(control._known) == [str(number) for number in range(20, 30)]
