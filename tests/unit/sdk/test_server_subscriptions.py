"""Server-side subscriptions: begun once by an order, restored for an identity, and ended by an order."""

import asyncio
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway import BrokerUnavailable, LimitExceeded, Limits, Reached, Service
from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.tokens import Verifier
from snorky.gateway.contracts.control import ControlOrder
from snorky.gateway.metrics import Metrics
from snorky.gateway.sdk import control as control_module
from snorky.gateway.sdk import server_subscriptions as module
from snorky.services.auth import AuthService
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import house, settle, until
from tests.support.fakes.memory_cluster import Town, town
from tests.support.scenarios.logins import AUTH, FIXED
from tests.support.scenarios.tokens import hmac_token

RULES = [
    {"match": "kept:*", "history": 10, "allow_subscribe": "nobody"},
    {"match": "room:*", "presence": True, "join_leave": True, "history": 10},
    {"match": "closed:*", "allow_subscribe": "nobody"},
]
NONE = {"position": None, "recovered": False, "messages": []}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "ANSWER_S", 0.2)
    monkeypatch.setattr(module, "RETRY_S", (0.01, 0.01))


def services() -> list[Service]:
    return [PubSubService(channels=RULES)]


async def subscribe(nodes: Town, target: str = "news", /, *, by: int = 0, **options: Any) -> Reached:
    return await nodes.nodes[by].control.give("subscribe", service="pubsub", target=target, **options)


async def unsubscribe(nodes: Town, *, by: int = 0, **options: Any) -> Reached:
    return await nodes.nodes[by].control.give("unsubscribe", service="pubsub", reason="why", **options)


def told(channel: Any = "news", **fields: Any) -> dict[str, Any]:
    return {"type": "subscribed", "channel": channel, **(fields or NONE)}


def ended(channel: Any = "news", code: str = "unsubscribed", reason: str = "why") -> dict[str, Any]:
    return {"type": "unsubscribed", "channel": channel, "code": code, "reason": reason}


async def publish(nodes: Town, channel: Any, message: Any) -> None:
    service = nodes.nodes[0].find_service("pubsub")
    assert isinstance(service, PubSubService)
    await service.publish_from_backend(channel, message)


async def test_present_connections_of_an_identity_are_subscribed_once_and_notified_before_messages() -> None:
    async with town(3, services) as nodes:
        ann = [nodes.client(number, "ann") for number in (0, 1, 1)]
        bob = nodes.client(2, "bob")
        assert await subscribe(nodes, identity="ann") == Reached({"n0": 1, "n1": 2, "n2": 0}, [])
        assert await subscribe(nodes, identity="ann", by=2) == Reached({"n0": 1, "n1": 2, "n2": 0}, [])
        await publish(nodes, "news", 1)
        for client in ann:
            await client.hears({"type": "message", "channel": "news", "message": 1})
            assert client.notifications[0] == told()
            assert len(client.notifications) == 2
        assert bob.notifications == []


@pytest.mark.parametrize("channel", ["news", "kept:1"])
async def test_notification_comes_before_messages_that_are_published_meanwhile(channel: str) -> None:
    async with town(2, services) as nodes:
        bob, ann = nodes.client(0, "bob"), nodes.client(1, "ann")
        await subscribe(nodes, channel, identity="bob")
        confirm, broker = nodes.brokers[1].subscribe, nodes.brokers[1]

        async def late(key: str) -> None:  # what Redis has sent is read before the task that waits for it runs
            await confirm(key)
            await settle()

        broker.subscribe = late  # type: ignore[method-assign]
        ordering = asyncio.create_task(subscribe(nodes, channel, identity="ann"))
        count = 0
        while not ordering.done():
            await publish(nodes, channel, count)
            count += 1
        await until(lambda: bob.notifications[-1].get("message") == count - 1)
        first, *later = ann.notifications
        assert first["type"] == "subscribed" and count > 3
        assert [each["message"] for each in later] == list(range(count))[count - len(later) :]


async def test_closed_channel_with_history_has_positions_and_can_be_recovered_by_the_client() -> None:
    async with town(2, services) as nodes:
        ann = nodes.client(0, "ann")
        assert await ann.ask("pubsub", "subscribe", channel="kept:1", recover=True) == "Error: Not authorized"
        await publish(nodes, "kept:1", "before")
        assert (await subscribe(nodes, "kept:1", identity="ann")).connections == 1
        await publish(nodes, "kept:1", "after")
        first, message = await ann.notified(2)
        assert (first["recovered"], first["messages"], message["offset"]) == (True, [], 2)
        again = nodes.client(1, "ann")
        await again.notified(1)
        reply = await again.ask("pubsub", "subscribe", channel="kept:1", recover=first["position"], serverSide=True)
        assert [each["message"] for each in reply["messages"]] == ["after"]
        await publish(nodes, "kept:1", "live")
        assert [each["message"] for each in (await again.notified(2))[1:]] == ["live"]
        assert (await again.ask("pubsub", "history", channel="kept:1"))["messages"]


async def test_position_of_an_order_brings_the_messages_after_it() -> None:
    async with town(1, services) as nodes:
        position = str(await nodes.nodes[0].find_service("pubsub").topics.position("kept:1"))  # type: ignore[union-attr]
        await publish(nodes, "kept:1", "missed")
        ann = nodes.client(0, "ann")
        await subscribe(nodes, "kept:1", identity="ann", recover=position)
        (notice,) = await ann.notified(1)
        assert [each["message"] for each in notice["messages"]] == ["missed"]


async def test_without_recover_there_are_no_positions() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        await subscribe(nodes, "kept:1", identity="ann", recover=False)
        await publish(nodes, "kept:1", 1)
        expected = [{"type": "subscribed", "channel": "kept:1"}, {"type": "message", "channel": "kept:1", "message": 1}]
        assert await ann.notified(2) == expected


async def test_later_connections_of_an_identity_are_subscribed_but_not_after_an_order_by_connection_or_channel() -> (
    None
):
    async with town(2, services) as nodes:
        first = nodes.client(0, "ann")
        await subscribe(nodes, "of identity", identity="ann")
        await subscribe(nodes, "of connection", connection_id=first.connection.id)
        await subscribe(nodes, "of both", connection_id=first.connection.id, identity="ann")
        await subscribe(nodes, "of channel", channel="of identity")
        await subscribe(nodes, "of identity on channel", channel="of identity", identity="ann")
        assert len(await first.notified(5)) == 5
        later = nodes.client(1, "ann")
        await later.hears(told("of identity"))
        await settle()
        assert later.notifications == [told("of identity")]
        assert nodes.client(1, "bob").notifications == []


async def test_unsubscribed_identity_is_not_restored_whichever_order_ended_it() -> None:
    async with town(2, services) as nodes:
        for end in ({"identity": "ann", "channel": "news"}, {"identity": "ann"}, {"channel": "news"}):
            await subscribe(nodes, identity="ann")  # no client is connected
            assert await nodes.subscription_store.find("ann")
            await unsubscribe(nodes, **end)
            later = nodes.client(1, "ann")
            await settle()
            assert later.notifications == [], end
            later.leave()


async def test_order_to_one_connection_does_not_remove_what_is_stored() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        await subscribe(nodes, identity="ann")
        assert (await unsubscribe(nodes, connection_id=ann.connection.id, channel="news")).connections == 1
        assert ann.notifications == [told(), ended()]
        await nodes.client(0, "ann").hears(told())


async def test_unsubscribe_that_comes_while_stored_subscriptions_are_read_prevents_the_restoration() -> None:
    async with town(1, services) as nodes:
        await subscribe(nodes, identity="ann")
        reading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        store, find = nodes.subscription_store, nodes.subscription_store.find

        async def slow(identity: str) -> Any:
            found = await find(identity)
            await reading
            return found

        store.find = slow  # type: ignore[method-assign]
        ann = nodes.client(0, "ann")
        await settle()
        assert (await unsubscribe(nodes, identity="ann")).connections == 0
        reading.set_result(None)
        await settle()
        assert ann.notifications == [] and not ann.connection.channels


async def test_orders_read_together_are_carried_out_in_order() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        with nodes.orders_delayed(0):
            await asyncio.gather(subscribe(nodes, "a", identity="ann"), subscribe(nodes, "b", identity="ann"))
            await unsubscribe(nodes, identity="ann", channel="a")
        await until(lambda: "pubsub:b" in ann.connection.channels)
        await settle()
        assert ann.connection.channels == {"pubsub:b"}
        with nodes.orders_delayed(0):
            await unsubscribe(nodes, identity="ann", channel="b")
            await subscribe(nodes, "b", identity="ann")
        await settle()
        assert ann.connection.channels == {"pubsub:b"}


async def test_order_to_subscribe_waits_for_the_end_of_an_earlier_one_to_unsubscribe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control_module, "CHUNK", 4)
    async with town(1, services) as nodes:
        crowd = [nodes.client(0, "ann") for _ in range(40)]
        assert (await subscribe(nodes, identity="ann")).connections == len(crowd)
        with nodes.orders_delayed(0):
            await asyncio.gather(unsubscribe(nodes, identity="ann"), subscribe(nodes, identity="ann"))
        await until(lambda: all(len(client.notifications) >= 3 for client in crowd))
        assert all(client.connection.channels for client in crowd)


async def test_unsubscribe_ends_a_subscription_in_progress_and_a_later_subscribe_begins_it_again() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        nodes.brokers[0].is_failing = True
        assert (await subscribe(nodes, "room:1", identity="ann")).missing == ["n0"]
        assert await unsubscribe(nodes, identity="ann", channel="room:1") == Reached({"n0": 0}, [])
        nodes.brokers[0].is_failing = False
        await asyncio.sleep(5 * module.RETRY_S[1])  # another attempt would begin now
        await settle()
        assert not ann.connection.channels and ann.notifications == []
        assert (await subscribe(nodes, "room:1", identity="ann")).connections == 1
        assert [each["type"] for each in ann.notifications] == ["subscribed"]
        assert (await ann.ask("pubsub", "presence", channel="room:1")) == {"members": ["ann"]}


async def test_order_is_carried_out_once_redis_confirms_again() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        nodes.brokers[0].is_failing = True
        assert (await subscribe(nodes, identity="ann")).missing == ["n0"]
        nodes.brokers[0].is_failing = False
        await ann.hears(told())


async def test_restoration_is_tried_again_and_a_command_that_needs_it_says_so() -> None:
    async with town(1, services) as nodes:
        await subscribe(nodes, identity="ann")
        with nodes.redis_unavailable():
            ann = nodes.client(0, "ann")
            answer = await ann.ask("pubsub", "subscribe", channel="news", serverSide=True)
            assert answer == "Error: Temporarily unavailable"
        await ann.hears(told())


async def test_client_may_ask_for_a_server_side_subscription_only_while_it_has_one() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        assert await ann.ask("pubsub", "subscribe", channel="news", serverSide=True) == "Error: Not subscribed"
        assert await ann.ask("pubsub", "subscribe", channel="news", serverSide=1) == "Error: Invalid params"
        await subscribe(nodes, "closed:1", identity="ann")
        for _ in range(2):
            assert await ann.ask("pubsub", "subscribe", channel="closed:1", serverSide=True) is None
        assert await ann.ask("pubsub", "subscribe", channel="closed:1") is None, "it begins again"
        await publish(nodes, "closed:1", 1)
        assert [each["type"] for each in await ann.notified(2)] == ["subscribed", "message"]
        await unsubscribe(nodes, identity="ann")
        for side in (True, False):
            answer = await ann.ask("pubsub", "subscribe", channel="closed:1", serverSide=side)
            assert answer == ("Error: Not subscribed" if side else "Error: Not authorized")


@pytest.mark.parametrize("order", [{"channel": "closed:1"}, {"identity": "ann"}, {"connection_id": "n0.1"}], ids=str)
async def test_unsubscribe_also_ends_a_subscription_that_could_not_begin_again(order: Any) -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        await subscribe(nodes, "closed:1", identity="ann")
        for may_try_again in (True, False):
            nodes.brokers[0].is_failing = True
            assert await ann.ask("pubsub", "subscribe", channel="closed:1") == "Error: Temporarily unavailable"
            nodes.brokers[0].is_failing = False
            if not may_try_again:
                await unsubscribe(nodes, **order)
            answer = await ann.ask("pubsub", "subscribe", channel="closed:1")
            assert answer == (None if may_try_again else "Error: Not authorized")


async def test_client_that_begins_again_stays_in_the_presence_and_leaves_it_at_the_end() -> None:
    async with town(2, services) as nodes:
        bob, ann = nodes.client(1, "bob"), nodes.client(0, "ann")
        await bob.ask("pubsub", "subscribe", channel="room:1")
        await subscribe(nodes, "room:1", identity="ann")
        reply = await ann.ask("pubsub", "subscribe", channel="room:1", recover=True, serverSide=True)
        assert reply["recovered"] is True
        await unsubscribe(nodes, identity="ann")
        await settle()
        assert [each["type"] for each in bob.notifications] == ["joined", "left"]


async def test_subscription_of_the_client_itself_is_counted_and_left_as_it_is() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        await ann.ask("pubsub", "subscribe", channel="news")
        assert (await subscribe(nodes, identity="ann")).connections == 1
        assert ann.notifications == []


async def test_subscription_expires_and_is_not_restored_then() -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        await subscribe(nodes, identity="ann", expires_in_s=0.2)
        await ann.hears(ended(code="expired", reason="Token expired"))
        assert ann.notifications[0] == told(**NONE, expiresInS=0)
        assert await nodes.subscription_store.find("ann") == []


async def test_limit_of_channels_counts_server_side_subscriptions() -> None:
    async with town(1, services, limits=Limits(channels_per_connection=1)) as nodes:
        ann = nodes.client(0, "ann")
        assert (await subscribe(nodes, "a", identity="ann")).connections == 1
        with capture_logs() as logs:
            assert (await subscribe(nodes, "b", identity="ann")).connections == 0
        assert [each["code"] for each in logs if each["event"] == "server-side subscription refused"] == [
            "limit_exceeded"
        ]
        assert await ann.ask("pubsub", "subscribe", channel="c") == "Error: Too many channels"


async def test_other_services_take_no_orders_and_nothing_remains_of_closed_connections() -> None:
    async with town(1, services) as nodes:
        ann, subscriptions = nodes.client(0, "ann"), nodes.nodes[0].control.subscriptions
        give = nodes.nodes[0].control.give
        assert (await give("subscribe", service="nothing", target="x", identity="ann")).connections == 0
        nodes.brokers[0].is_failing = True
        await subscribe(nodes, identity="ann")
        assert subscriptions._subscribing
        ann.leave()
        await settle()
        assert not subscriptions._subscribing and not subscriptions._restoring and not subscriptions._orders
        nodes.client(0, "ann").leave()  # before its task has begun
        await settle()
        assert not subscriptions._restoring


async def test_connection_that_authenticates_later_is_subscribed_then_and_not_again_by_a_refresh() -> None:
    def auth(metrics: Metrics) -> Authenticator:
        return Authenticator(Verifier(FIXED, AUTH), metrics=metrics, auth=AUTH)

    async with town(1, lambda: [*services(), AuthService()], auth=auth) as nodes:
        await subscribe(nodes, identity="ann")
        client = nodes.client(0)
        await settle()
        assert client.notifications == []
        await client.ask("auth", "authenticate", token=hmac_token("ann", exp=time.time() + 60))
        await client.hears(told())
        assert await client.ask("pubsub", "unsubscribe", channel="news") is None
        await client.ask("auth", "refresh", token=hmac_token("ann", exp=time.time() + 90))
        await settle()
        assert client.notifications == [told()], "the client has left it on this connection"


@pytest.mark.parametrize("order", [{"identity": "ann"}, {"channel": "news"}])
async def test_present_connections_are_unsubscribed_also_if_the_stored_ones_cannot_be_removed(order: Any) -> None:
    async with town(1, services) as nodes:
        ann = nodes.client(0, "ann")
        await subscribe(nodes, identity="ann")

        async def fail(*_: Any) -> None:
            raise BrokerUnavailable("this one of several Redis")

        nodes.subscription_store.remove = nodes.subscription_store.end = fail  # type: ignore[method-assign]
        with pytest.raises(BrokerUnavailable):
            await unsubscribe(nodes, **order)
        assert ann.notifications == [told(), ended()]
        nodes.subscription_store.add = fail  # type: ignore[method-assign]
        with pytest.raises(BrokerUnavailable):
            await subscribe(nodes, identity="ann")
        await settle()
        assert not ann.connection.channels


async def test_order_that_is_too_large_is_not_stored() -> None:
    async with town(1, services) as nodes:
        with pytest.raises(LimitExceeded, match="at most"):
            await subscribe(nodes, "x" * 2000, identity="ann")
        assert await nodes.subscription_store.find("ann") == []


async def test_node_without_redis_restores_too() -> None:
    async with house(PubSubService()) as built:
        order = ControlOrder("1", "subscribe", service="pubsub", identity="ann", target="news")
        await built.node.control.subscriptions.store_order(order)
        client = built.client()
        client.connection.identity = "ann"
        built.node.control.subscriptions.restore(client.connection)
        assert (await client.received(1))[0] == told()
