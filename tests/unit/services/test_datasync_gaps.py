"""Deltas that race acquisitions, were missed, or are out of order."""

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from snorky.gateway import CloseCode, History, Position
from snorky.gateway.protocol.publication import Publication, read_publication
from snorky.gateway.testing.history import write_sequenced
from snorky.services.datasync.feed import Feed
from tests.support.fakes.fake_wire import settle, until
from tests.support.fakes.memory_cluster import Resident
from tests.support.scenarios.datasync_stage import ALL, Stage, numbers, task

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

    def receive(key: str, payload: bytes) -> None:
        queue.append((key, payload))
        if len(queue) == 1:
            asyncio.get_running_loop().call_soon(drain)

    broker.receive = receive


async def test_a_gap_in_received_deltas_is_filled(stage: Stage) -> None:
    client = await stage.acquire(1, await stage.authorize(0, ALL))
    await stage.publish(0, task(1))
    await client.notified(1)
    broker = stage.town.brokers[1]
    receive, broker.receive = broker.receive, lambda key, payload: None  # type: ignore[method-assign]
    await stage.publish(0, task(2), task(3))
    await settle()
    broker.receive = receive  # type: ignore[method-assign]
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
    receive, broker.receive = broker.receive, lambda key, payload: None  # type: ignore[method-assign]
    await stage.publish(0, task(2))
    await settle()
    broker.receive = receive  # type: ignore[method-assign]
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
    receive, broker.receive = broker.receive, lambda key, payload: None  # type: ignore[method-assign]
    await stage.publish(0, task(2))
    await settle()
    broker.receive = receive  # type: ignore[method-assign]
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
        receive, broker.receive = broker.receive, lambda key, payload: None  # type: ignore[method-assign]
        await stage.publish(0, task(103))
        await settle()
        broker.receive = receive  # type: ignore[method-assign]
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
        feed._receive(
            [
                read_publication(write_sequenced(Publication(b"1", position, before.tag)))
                for before, position in pairwise(archive_positions)
            ]
        )
        merged = feed.newer(archive_positions[1])
        assert merged is not None and [each.position for each in merged] == archive_positions[2:]
        assert feed.newer(Position("e", 1, "other")) is None
