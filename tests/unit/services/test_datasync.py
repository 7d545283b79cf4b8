"""DataSync over three nodes in one process: the protocol, and the transition from history to live deltas."""

from typing import Any

import pytest

from snorky.gateway import ConfigurationError
from snorky.services.datasync import DataSyncService, Delta
from snorky.services.datasync.subscriptions import ATTEMPTS_MAX
from tests.support.fakes.fake_wire import settle
from tests.support.scenarios.datasync_stage import ALL, Stage, numbers, task
from tests.support.scenarios.dealers import AllTasks


async def test_deltas_reach_clients_that_acquired_on_another_node(stage: Stage) -> None:
    client = await stage.acquire(1, await stage.authorize(0, {"dealer": "players_with_color", "query": "red"}))
    red, blue = {"name": "Alice", "color": "red"}, {"name": "Alice", "color": "blue"}
    await stage.publish(
        2,
        Delta("insert", "Player", new=blue),
        Delta("update", "Player", new=red, old=blue),
        Delta("update", "Player", new=red, old=red),
        Delta("update", "Player", new=blue, old=red),
        Delta("delete", "Player", old=blue),
    )
    assert await client.notified(3) == [
        {"type": "delta", "delta": {"type": "insert", "model": "Player", "data": red}},
        {"type": "delta", "delta": {"type": "update", "model": "Player", "newData": red, "oldData": red}},
        {"type": "delta", "delta": {"type": "delete", "model": "Player", "data": red}},
    ]


async def test_deltas_between_authorization_and_acquisition_arrive_in_order(stage: Stage) -> None:
    await stage.publish(2, task(0))  # before: the client reads it from the database
    token = await stage.authorize(0, ALL)
    for number in (1, 2, 3):
        await stage.publish(number % 3, task(number))
    client = await stage.acquire(1, token)
    await stage.publish(2, task(4), task(5))
    await client.notified(5)
    await settle()
    assert numbers(client) == [1, 2, 3, 4, 5]


async def test_replayed_deltas_are_seen_by_the_item_too(stage: Stage) -> None:
    token = await stage.authorize(0, {"dealer": "Players", "query": ["==", "color", "red"]})
    red, blue = {"color": "red"}, {"color": "blue"}
    await stage.publish(1, Delta("update", "Player", new=red, old=blue), Delta("delete", "Player", old=blue))
    client = await stage.acquire(2, token)
    assert await client.notified(1) == [
        {"type": "delta", "delta": {"type": "insert", "model": "Player", "data": red}},
    ]


async def test_a_tag_is_repeated_by_the_deltas_of_its_item(stage: Stage) -> None:
    items = [ALL, {**ALL, "tag": {"view": 7}}, {"dealer": "TasksOfList", "query": "home", "tag": None}]
    token = await stage.authorize(0, *items)
    await stage.publish(0, task(1))
    client = await stage.acquire(1, token)
    await stage.publish(0, task(2))
    await client.notified(6)
    for at, number in ((0, 1), (3, 2)):
        deltas = [each["delta"] for each in client.notifications[at : at + 3]]
        assert all(delta["data"]["n"] == number for delta in deltas)
        tags = [delta.get("tag", "none") for delta in deltas]
        assert sorted(map(str, tags)) == ["None", "none", "{'view': 7}"]


async def test_two_subscriptions_of_one_client_are_two(stage: Stage) -> None:
    first, second = [await stage.authorize(0, {"dealer": "TasksOfList", "query": each}) for each in ("a", "b")]
    client = await stage.acquire(1, first)
    assert await client.ask("datasync", "acquireSubscription", token=second) is None
    await stage.publish(0, task(1, "a"), task(2, "b"))
    await client.notified(2)
    assert await client.ask("datasync", "cancelSubscription", token=first) is None
    await stage.publish(0, task(3, "a"), task(4, "b"))
    await client.notified(3)
    assert numbers(client) == [1, 2, 4]


async def test_cancelling_ends_the_deltas_and_the_subscription(stage: Stage) -> None:
    token = await stage.authorize(0, ALL)
    client = await stage.acquire(1, token)
    assert "datasync:Task" in stage.town.brokers[1].subscribed
    assert await client.ask("datasync", "cancelSubscription", token=token) is None
    await stage.publish(0, task(1))
    await settle()
    assert client.notifications == []
    assert "datasync:Task" not in stage.town.brokers[1].subscribed
    assert await client.ask("datasync", "cancelSubscription", token=token) == "Error: No such subscription"


async def test_a_client_that_disconnects_leaves_no_state(stage: Stage) -> None:
    client = await stage.acquire(1, await stage.authorize(0, ALL, {"dealer": "Players", "query": ["<", "a", 1]}))
    staying = await stage.acquire(1, await stage.authorize(0, ALL))
    client.leave()
    await stage.publish(0, task(1))
    await staying.notified(1)
    staying.leave()
    exchange = stage.service(1)._exchange
    assert not exchange._feeds and not exchange._subscriptions
    assert not stage.town.brokers[1].subscribed
    dealer = stage.service(1).dealers.get("AllTasks")
    assert dealer is not None and list(dealer.get_subscription_items_for_model({})) == []


@pytest.mark.parametrize(
    ("command", "params", "text"),
    [
        ("authorizeSubscription", {"items": [{"dealer": {}, "query": 1}]}, "dealer should be a dealer name"),
        ("authorizeSubscription", {"items": [{"dealer": "whatever", "query": 1}]}, "No such dealer"),
        ("authorizeSubscription", {"items": [{"foo": "bar", "query": 1}]}, "Missing field 'dealer'"),
        ("authorizeSubscription", {"items": [{"dealer": "AllTasks"}]}, "Missing field 'query'"),
        ("authorizeSubscription", {"items": [{"dealer": "Players", "query": "red"}]}, "Invalid query"),
        ("authorizeSubscription", {"items": "AllTasks"}, "Invalid params"),
        ("authorizeSubscription", {"items": ["AllTasks"]}, "Invalid params"),
        ("publishDeltas", {"deltas": [{"type": "insert", "model": "Task"}]}, "Missing field"),
        ("publishDeltas", {"deltas": [{"model": "Task", "data": 1}]}, "Missing field"),
        ("publishDeltas", {"deltas": [{"type": "upsert", "model": "Task", "data": 1}]}, "Invalid delta type"),
        ("publishDeltas", {"deltas": [{"type": "insert", "model": 5, "data": 1}]}, "model must be string"),
        ("publishDeltas", {"deltas": 5}, "Invalid params"),
    ],
)
async def test_backend_is_refused_in_the_protocols_words(stage: Stage, command: str, params: Any, text: str) -> None:
    assert await stage.ask(0, command, **params) == f"Error: {text}"


async def test_nothing_is_published_of_a_list_with_a_fault(stage: Stage) -> None:
    client = await stage.acquire(1, await stage.authorize(0, ALL))
    deltas = [task(1).value, {"type": "insert"}]
    assert await stage.ask(0, "publishDeltas", deltas=deltas) == "Error: Missing field"
    too_long = {"type": "insert", "model": "x" * 300, "data": 1}
    assert (await stage.ask(0, "publishDeltas", deltas=[task(2).value, too_long])).startswith("Error: ")
    await stage.publish(0, task(3))
    await client.notified(1)
    assert numbers(client) == [3]


@pytest.mark.parametrize("command", ["acquireSubscription", "cancelSubscription"])
async def test_client_is_refused_in_the_protocols_words(stage: Stage, command: str) -> None:
    client = stage.town.client(0)
    assert await client.ask("datasync", command, token=5) == "Error: token must be string"
    assert await client.ask("datasync", command, token="foo") == "Error: No such subscription"
    assert await client.ask("datasync", command, token="0" * 32) == "Error: No such subscription"


async def test_a_token_is_good_once_and_its_subscription_is_its_clients_own(stage: Stage) -> None:
    token = await stage.authorize(0, ALL)
    client, other = await stage.acquire(1, token), stage.town.client(1)
    assert await other.ask("datasync", "acquireSubscription", token=token) == "Error: No such subscription"
    assert await client.ask("datasync", "acquireSubscription", token=token) == "Error: No such subscription"
    assert await other.ask("datasync", "cancelSubscription", token=token) == "Error: No such subscription"
    await stage.publish(0, task(1))
    await client.notified(1)


async def test_lost_history_is_an_error(stage: Stage) -> None:
    token = await stage.authorize(0, ALL)
    stage.town.archive.flush()
    client = stage.town.client(1)
    assert await client.ask("datasync", "acquireSubscription", token=token) == "Error: No such subscription"
    assert not stage.town.brokers[1].subscribed


async def test_a_client_may_try_again_while_redis_does_not_answer(stage: Stage) -> None:
    token = await stage.authorize(0, ALL)
    await stage.publish(0, task(1))
    client = stage.town.client(1)
    stage.town.archive.is_failing = True
    assert await client.ask("datasync", "acquireSubscription", token=token) == "Error: Temporarily unavailable"
    stage.town.archive.is_failing = False
    assert await client.ask("datasync", "acquireSubscription", token=token) is None
    assert numbers(client) == [1]


async def test_a_client_may_try_again_when_the_answer_to_taking_the_token_was_lost(stage: Stage) -> None:
    token = await stage.authorize(0, ALL)
    await stage.publish(0, task(1))
    client, other = stage.town.client(1), stage.town.client(2)
    stage.town.cluster.is_losing_answers = True
    assert await client.ask("datasync", "acquireSubscription", token=token) == "Error: Temporarily unavailable"
    stage.town.cluster.is_losing_answers = False
    assert await other.ask("datasync", "acquireSubscription", token=token) == "Error: No such subscription"
    assert await client.ask("datasync", "acquireSubscription", token=token) is None
    assert await client.ask("datasync", "acquireSubscription", token=token) == "Error: No such subscription"
    assert numbers(client) == [1]


async def test_attempts_to_take_tokens_are_bounded(stage: Stage) -> None:
    client = stage.town.client(1)
    stage.town.cluster.is_losing_answers = True
    for number in range(ATTEMPTS_MAX + 10):
        assert (
            await client.ask("datasync", "acquireSubscription", token=str(number)) == "Error: Temporarily unavailable"
        )
    assert len(client.connection.data["datasync"].attempts) == ATTEMPTS_MAX


def test_settings_name_dealers_by_dotted_names() -> None:
    service = DataSyncService(dealers=["tests.support.scenarios.dealers:AllTasks"])
    assert isinstance(service.dealers.get("AllTasks"), AllTasks)
    for wrong in (
        "tests.support.scenarios.dealers:Nobody",
        "tests.support.nowhere:AllTasks",
        "tests.support.scenarios.dealers",
        "json:loads",
    ):
        with pytest.raises(ConfigurationError, match="dealers"):
            DataSyncService(dealers=[wrong])
    with pytest.raises(ConfigurationError, match="two dealers"):
        DataSyncService(dealers=[AllTasks, AllTasks()])
    with pytest.raises(ConfigurationError, match="history_ttl_s"):
        DataSyncService(history_ttl_s=120.0)


async def test_dealers_can_be_added_and_removed(stage: Stage) -> None:
    service = stage.service(0)
    dealer = service.dealers.get("AllTasks")
    assert dealer is not None
    service.unregister_dealer(dealer)
    assert await stage.ask(0, "authorizeSubscription", items=[ALL]) == "Error: No such dealer"
    assert service.register_dealer(AllTasks) is service.dealers.get("AllTasks")
    await stage.authorize(0, ALL)
