"""DataSync over three nodes in one process: the protocol, and the transition from history to live deltas."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest

from snorky.gateway import CloseCode, ConfigurationError, History, Position, ServiceRegistry
from snorky.gateway.protocol.publication import Publication, read_publication
from snorky.gateway.testing.history import write_sequenced
from snorky.services.datasync import DataSyncBackend, DataSyncService, Delta
from snorky.services.datasync.feed import Feed
from snorky.services.datasync.subscriptions import ATTEMPTS_MAX
from tests.support.fakes.fake_wire import settle, until
from tests.support.fakes.memory_cluster import Resident, Town, town
from tests.support.scenarios.dealers import AllTasks, Players, PlayersWithColor, TasksOfList

DEALERS = (AllTasks, TasksOfList, Players, PlayersWithColor)


class Stage:
    """A town with a backend on every node."""

    def __init__(self, nodes: Town) -> None:
        self.town = nodes
        self._private = [ServiceRegistry([DataSyncBackend()]) for _ in nodes.nodes]
        for node, registry in zip(nodes.nodes, self._private, strict=True):
            node.attach(registry)

    def service(self, number: int) -> DataSyncService:
        service = self.town.registries[number]["datasync"]
        assert isinstance(service, DataSyncService)
        return service

    async def ask(self, number: int, command: str, **params: Any) -> Any:
        backend = Resident(self.town.nodes[number], self._private[number], None)
        try:
            return await backend.ask("datasync_backend", command, **params)
        finally:
            backend.leave()

    async def authorize(self, number: int, *items: Any) -> str:
        token = await self.ask(number, "authorizeSubscription", items=list(items))
        assert isinstance(token, str) and len(token) == 32, token
        return token

    async def publish(self, number: int, *deltas: Delta) -> None:
        assert await self.ask(number, "publishDeltas", deltas=[delta.value for delta in deltas]) is None

    async def acquire(self, number: int, token: str) -> Resident:
        client = self.town.client(number)
        assert await client.ask("datasync", "acquireSubscription", token=token) is None
        return client


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with town(3, lambda: [DataSyncService(dealers=DEALERS)]) as nodes:
        yield Stage(nodes)


def task(number: int, of: str = "home") -> Delta:
    return Delta("insert", "Task", new={"n": number, "list": of})


def numbers(client: Resident) -> list[int]:
    return [each["delta"]["data"]["n"] for each in client.notifications]


ALL = {"dealer": "AllTasks", "query": None}


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


# -- the seam ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
async def test_deltas_racing_acquisitions_arrive_once_and_in_order(stage: Stage, seed: int) -> None:
    """Live deltas come early or late, reads are slow or fast: each client gets every delta after its token."""
    chance = random.Random(seed)
    published = 0
    waiting: list[tuple[int, str]] = []
    for broker in stage.town.brokers:
        _dawdle(broker, chance)
    stage.town.archive.lateness = lambda: chance.choice((0, 1, 2, 30))
    joins: list[tuple[int, asyncio.Task[Resident]]] = []
    for _ in range(150):
        step = chance.random()
        if step < 0.1:
            waiting.append((published, await stage.authorize(chance.randrange(3), ALL)))
        elif step < 0.2 and waiting:
            since, token = waiting.pop(chance.randrange(len(waiting)))
            joins.append((since, asyncio.create_task(stage.acquire(chance.randrange(3), token))))
        elif step < 0.8:
            count = chance.randrange(1, 4)
            await stage.publish(chance.randrange(3), *(task(published + at) for at in range(count)))
            published += count
        else:
            await settle(chance.randrange(10))
    for since, join in joins:
        client = await join
        await client.notified(published - since)
        await settle()
        assert numbers(client) == list(range(since, published))


def _dawdle(broker: Any, chance: random.Random) -> None:
    """Deliver a broker's publications late, in order."""
    bring: Callable[[str, bytes], None] = broker._bring
    queue: list[tuple[str, bytes]] = []

    def drain() -> None:
        if chance.random() < 0.4:
            asyncio.get_running_loop().call_soon(drain)
            return
        waiting, queue[:] = queue[:], []
        for key, payload in waiting:
            bring(key, payload)

    def hear(key: str, payload: bytes) -> None:
        queue.append((key, payload))
        if len(queue) == 1:
            asyncio.get_running_loop().call_soon(drain)

    broker.hear = hear


async def test_a_gap_in_received_deltas_is_filled(stage: Stage) -> None:
    client = await stage.acquire(1, await stage.authorize(0, ALL))
    await stage.publish(0, task(1))
    await client.notified(1)
    broker = stage.town.brokers[1]
    hear, broker.hear = broker.hear, lambda key, payload: None  # type: ignore[method-assign]
    await stage.publish(0, task(2), task(3))
    await settle()
    broker.hear = hear  # type: ignore[method-assign]
    await stage.publish(0, task(4), task(5))
    await client.notified(5)
    await settle()
    assert numbers(client) == [1, 2, 3, 4, 5]


async def test_a_hole_is_filled_as_soon_as_redis_answers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snorky.gateway.delivery.gap_repair.RETRY_S", 0.001)
    client = await stage.acquire(1, await stage.authorize(0, ALL))
    await stage.publish(0, task(1))
    await client.notified(1)
    broker, archive = stage.town.brokers[1], stage.town.archive
    hear, broker.hear = broker.hear, lambda key, payload: None  # type: ignore[method-assign]
    await stage.publish(0, task(2))
    await settle()
    broker.hear = hear  # type: ignore[method-assign]
    await stage.publish(0, task(3))
    archive.is_failing = True
    await settle()
    assert numbers(client) == [1]
    archive.is_failing = False
    await client.notified(3)
    assert numbers(client) == [1, 2, 3]


async def test_last_delta_before_a_pause_arrives_after_an_interruption(stage: Stage) -> None:
    """The loss is noticed without another delta."""
    client = await stage.acquire(1, await stage.authorize(0, ALL))
    stage.town.brokers[1].is_lossy = True
    await stage.publish(0, task(1))
    await settle()
    stage.town.brokers[1].is_lossy = False
    stage.town.nodes[1].on_interrupted()
    await client.notified(1)
    assert numbers(client) == [1] and not client.wire.closes


async def test_a_client_that_acquires_before_its_node_notices_a_loss_stays(stage: Stage) -> None:
    before = await stage.acquire(1, await stage.authorize(0, ALL))
    await stage.publish(0, task(1))
    await before.notified(1)
    stage.town.archive.flush()
    after = await stage.acquire(1, await stage.authorize(0, ALL))
    assert before.wire.closes == [(CloseCode.RESYNC, "Resync")]
    stage.town.nodes[1].on_interrupted()  # now it notices
    await settle()
    await stage.publish(0, task(2))
    await after.notified(1)
    assert numbers(after) == [2] and not after.wire.closes
    stage.town.archive.flush()  # and the next loss is reported again
    await stage.publish(0, task(3))
    await until(lambda: after.wire.closes)
    assert after.wire.closes == [(CloseCode.RESYNC, "Resync")]


async def test_a_hole_that_cannot_be_filled_ends_the_connection(stage: Stage) -> None:
    client = await stage.acquire(1, await stage.authorize(0, ALL))
    await stage.publish(0, task(1))
    await client.notified(1)
    broker, archive = stage.town.brokers[1], stage.town.archive
    hear, broker.hear = broker.hear, lambda key, payload: None  # type: ignore[method-assign]
    await stage.publish(0, task(2))
    await settle()
    broker.hear = hear  # type: ignore[method-assign]
    archive.shelf("datasync:Task").entries.clear()
    await stage.publish(0, task(3))
    await until(lambda: client.wire.closes)
    assert client.wire.closes == [(CloseCode.RESYNC, "Resync")]
    assert numbers(client) == [1]


async def test_another_epoch_ends_the_connection(stage: Stage) -> None:
    client = await stage.acquire(1, await stage.authorize(0, ALL))
    await stage.publish(0, task(1))
    await client.notified(1)
    stage.town.archive.flush()
    await stage.publish(0, task(2))
    await until(lambda: client.wire.closes)
    assert client.wire.closes[0][0] == CloseCode.RESYNC
    assert numbers(client) == [1]


@pytest.mark.parametrize("lag", [0, 1])
async def test_offsets_used_again_end_the_connection(stage: Stage, lag: int) -> None:
    """A lagging replica was promoted: the same epoch, offsets that were assigned before."""
    client = await stage.acquire(1, await stage.authorize(0, ALL))
    await stage.publish(0, task(1), task(2))
    shelf = stage.town.archive.shelf("datasync:Task")
    before = (shelf.position, list(shelf.entries))
    await stage.publish(0, task(3))
    await client.notified(3)
    shelf.position, shelf.entries = before
    if lag:
        broker = stage.town.brokers[1]
        hear, broker.hear = broker.hear, lambda key, payload: None  # type: ignore[method-assign]
        await stage.publish(0, task(103))
        await settle()
        broker.hear = hear  # type: ignore[method-assign]
    await stage.publish(0, task(104))
    await until(lambda: client.wire.closes)
    assert client.wire.closes[0][0] == CloseCode.RESYNC
    assert numbers(client) == [1, 2, 3]


async def test_an_invalid_delta_affects_no_client(stage: Stage) -> None:
    client = await stage.acquire(1, await stage.authorize(0, ALL))
    archive, history = stage.town.archive, stage.service(0).history
    for payload in (b"\xff", b"5", b'{"type":"insert","model":"Other","data":1}', b"{"):
        archive.publish("datasync:Task", payload, history, None)
    stage.town.bus.publish("datasync:Task", b'{"type":"insert","model":"Task","data":{"n":9}}')  # no position
    await stage.publish(0, task(1))
    await client.notified(1)
    assert numbers(client) == [1] and not client.wire.closes


async def test_a_long_history_waits_for_a_slow_client(stage: Stage) -> None:
    token = await stage.authorize(0, ALL)
    await stage.publish(0, *(task(number) for number in range(1000)))
    client = stage.town.client(1)
    client.wire.buffered = client.connection.outbox_max_bytes // 2
    call = client.call("datasync", "acquireSubscription", token=token)
    await settle(50)
    assert numbers(client) == []
    client.wire.buffered = 0
    assert await client.answer(call) is None
    assert numbers(client) == list(range(1000))


async def test_client_that_leaves_while_joining_leaves_no_state(stage: Stage) -> None:
    token = await stage.authorize(0, ALL)
    await stage.publish(0, task(1))
    client = stage.town.client(1)
    stage.town.archive.before_read = client.leave
    client.call("datasync", "acquireSubscription", token=token)
    await until(lambda: client.connection.is_closed)
    await settle(50)
    exchange = stage.service(1)._exchange
    assert not exchange._feeds and not exchange._subscriptions and not stage.town.brokers[1].subscribed


async def test_a_delta_whose_tag_does_not_match_history_is_not_merged() -> None:
    """`newer` compares tags, not only offsets."""
    feed = Feed(
        None,  # type: ignore[arg-type]  # it makes no calls
        "Task",
        history=History(60.0),
        deliver=lambda _: None,
        lose=lambda: None,
    )
    archive_positions = [Position("e", number, f"t{number}") for number in range(4)]
    with feed.joining():
        feed._hear(
            [
                read_publication(write_sequenced(Publication(b"1", position, before.tag)))
                for before, position in pairwise(archive_positions)
            ]
        )
        merged = feed.newer(archive_positions[1])
        assert merged is not None and [each.position for each in merged] == archive_positions[2:]
        assert feed.newer(Position("e", 1, "other")) is None


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
