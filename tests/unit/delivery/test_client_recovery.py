"""Clients that resume from a position, on any node, whatever happens meanwhile."""

import asyncio
import random
from typing import Any

import pytest

from snorky.gateway import (
    AlreadySubscribed,
    BrokerUnavailable,
    ConfigurationError,
    ConnectionClosed,
    Node,
    NotSubscribed,
    Position,
    Recovery,
)
from tests.support.fakes.fake_wire import settle, until
from tests.support.fakes.memory_cluster import Resident, town
from tests.support.scenarios.history_stage import HOUR, Notes, Stage, heard, payloads

# -- client recovery ------------------------------------------------------------------------------------------------


async def test_client_resumes_on_another_node_with_missed_and_then_live_messages(stage: Stage) -> None:
    one, begun = await stage.back(0)
    assert (begun.is_recovered, begun.publications) == (True, [])
    await stage.publish(1, 2)
    await until(lambda: heard(one) == [1, 2])
    since = Position.parse(one.notifications[-1]["position"])
    one.leave()
    last = await stage.publish(3, 4)
    other, recovery = await stage.back(1, since)
    assert recovery.is_recovered and payloads(recovery) == [b"3", b"4"]
    assert recovery.position == last
    last = await stage.publish(5)
    await settle()
    assert other.notifications == [
        {"type": "message", "channel": "c", "message": 5, "offset": 5, "position": str(last)}
    ]


async def test_history_is_read_only_when_the_broker_has_confirmed(stage: Stage) -> None:
    """No client here receives earlier publications, and on a quiet channel nothing would reveal the hole."""
    client, broker, last = stage.town.client(0), stage.town.brokers[0], await stage.publish(1)
    broker.gate.clear()
    task = asyncio.ensure_future(stage.topics(0).recover(client.connection, "c", HOUR, last))
    await settle()
    await stage.publish(2)
    await settle()
    broker.gate.set()
    recovery = await task
    assert [*payloads(recovery), *heard(client)] == [b"2"]


async def test_a_channels_position_is_read_only_after_the_broker_has_confirmed(stage: Stage) -> None:
    broker = stage.town.brokers[0]
    broker.gate.clear()
    task = asyncio.ensure_future(stage.back(0))
    await settle()
    last = await stage.publish(1)
    await settle()
    broker.gate.set()
    _, recovery = await task
    assert recovery.position == last


async def test_replay_is_capped_in_messages_and_bytes_and_then_a_reported_gap(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snorky.gateway.delivery.gap_repair.KEEP_S", 0.0)
    _, begun = await stage.back(0)
    await stage.publish(*range(300))
    _, recovery = await stage.back(1, begun.position)
    assert recovery.is_recovered and len(recovery.publications) == 300
    last = await stage.publish(300)
    await settle()
    one, recovery = await stage.back(1, begun.position)
    assert recovery == Recovery(last, False, [])
    await stage.publish(301)
    await until(lambda: heard(one) == [301])
    before = await stage.topics(0).position("large")
    await stage.publish("x" * 600_000, channel="large")
    _, recovery = await stage.back(1, before, "large")
    assert recovery.is_recovered
    await stage.publish("x" * 600_000, channel="large")
    await settle()
    _, recovery = await stage.back(1, before, "large")
    assert not recovery.is_recovered and recovery.position.offset == 2


async def test_position_that_is_not_of_this_history_is_not_recovered(stage: Stage) -> None:
    last = await stage.publish(1, 2)
    for wrong in (
        Position("other", 1, last.tag),
        Position(last.epoch, 1, last.tag),
        Position(last.epoch, 7, last.tag),
        Position(last.epoch, 2, "other"),
    ):
        _, recovery = await stage.back(1, wrong)
        assert recovery == Recovery(last, False, [])


async def test_clients_that_resume_from_the_same_position_share_a_read(stage: Stage) -> None:
    since = await stage.publish(0)
    await stage.publish(1, 2)
    reads = 0

    def count() -> None:
        nonlocal reads
        reads += 1

    stage.town.archive.before_read = count
    stage.town.archive.lateness = lambda: 20
    coming = [asyncio.ensure_future(stage.back(0, since)) for _ in range(20)]
    for number in range(3, 15):  # some come while it is read, and while there is more
        await stage.publish(number)
        await asyncio.sleep(0)
        coming.append(asyncio.ensure_future(stage.back(0, since)))
    coming[3].cancel()
    back = [
        each for each in await asyncio.gather(*coming, return_exceptions=True) if not isinstance(each, BaseException)
    ]
    assert len(back) == 31
    await stage.publish(15)
    await settle(60)
    for client, recovery in back:
        assert [*map(int, payloads(recovery)), *heard(client)] == list(range(1, 16))
    assert reads <= 3
    await stage.back(0, since)
    assert reads <= 4, "and later clients read again"


async def test_client_ahead_of_a_node_that_missed_messages_gets_nothing_twice(stage: Stage) -> None:
    ahead, _ = await stage.back(1)
    behind, _ = await stage.back(0)
    stage.deafen(0)
    await stage.publish(1, 2)
    await until(lambda: heard(ahead) == [1, 2])
    assert heard(behind) == []
    since = Position.parse(ahead.notifications[-1]["position"])
    stage.mend(0, is_noticed=False)
    other, recovery = await stage.back(0, since)
    assert (recovery.is_recovered, recovery.publications, recovery.position) == (True, [], since)
    assert heard(behind) == [1, 2], "the node has filled the gap for all"
    await stage.publish(3)
    await until(lambda: heard(other) == [3])


async def test_client_that_resumes_after_history_was_lost_gets_one_report(stage: Stage) -> None:
    await stage.back(0)
    last = await stage.publish(1)
    await settle()
    stage.town.archive.flush()
    other, recovery = await stage.back(0, last)
    assert not recovery.is_recovered and recovery.position.epoch != last.epoch
    await stage.publish(2)
    await until(lambda: heard(other) == [2])


async def test_channel_without_a_place_for_positions_cannot_be_recovered(stage: Stage) -> None:
    with pytest.raises(ConfigurationError, match="objects"):
        await stage.back(0, channel="bare")
    assert stage.town.nodes[0].counts["subscriptions"] == 0
    assert stage.town.brokers[0].subscribed == set()


async def test_failed_recovery_leaves_no_state(stage: Stage) -> None:
    last = await stage.publish(1)
    client = stage.town.client(0)
    for failing in (stage.town.archive, stage.town.brokers[0]):
        failing.is_failing = True
        with pytest.raises(BrokerUnavailable):
            await stage.topics(0).recover(client.connection, "c", HOUR, last)
        failing.is_failing = False
        assert not client.connection.channels
        assert stage.town.nodes[0].counts["subscriptions"] == 0
        assert stage.town.brokers[0].subscribed == set()
    assert (await stage.topics(0).recover(client.connection, "c", HOUR, last)).is_recovered
    with pytest.raises(AlreadySubscribed):
        await stage.topics(0).recover(client.connection, "c", HOUR, last)


@pytest.mark.parametrize("what", ["archive", "broker"])
async def test_failed_subscriber_or_listener_of_a_history_channel_leaves_no_state(stage: Stage, what: str) -> None:
    client, topics = stage.town.client(0), stage.topics(0)
    failing: Any = stage.town.archive if what == "archive" else stage.town.brokers[0]
    failing.is_failing = True
    with pytest.raises(BrokerUnavailable):
        await topics.subscribe(client.connection, "c", history=HOUR)
    with pytest.raises(BrokerUnavailable):
        await topics.listen("c", lambda batch: None, history=HOUR)
    failing.is_failing = False
    assert not client.connection.channels
    assert stage.town.nodes[0].counts["subscriptions"] == 0
    assert stage.town.brokers[0].subscribed == set()
    await topics.listen("c", lambda batch: None, history=HOUR)
    await topics.subscribe(client.connection, "c", history=HOUR)
    await stage.publish(1)
    await until(lambda: heard(client) == [1])


async def test_an_unsubscribed_channel_is_neither_compared_nor_filled(stage: Stage) -> None:
    one, _ = await stage.back(0)
    await stage.publish(1)
    await settle()
    stage.deafen(0)
    await stage.publish(2)
    await settle()
    stage.town.archive.lateness = lambda: 30
    stage.mend(0)
    await settle(10)
    one.leave()
    await settle(60)
    two, recovery = await stage.back(0)
    await stage.publish(3)
    await until(lambda: heard(two) == [3])
    assert recovery.position.offset == 2
    assert stage.sample(0, "snorky_history_filled_publications_total") == 0


async def test_client_that_leaves_during_recovery_leaves_no_state(stage: Stage) -> None:
    last = await stage.publish(1)
    for error, leave in ((ConnectionClosed, Resident.leave), (NotSubscribed, _unsubscribe)):
        client = stage.town.client(0)
        task = asyncio.ensure_future(stage.topics(0).recover(client.connection, "c", HOUR, last))
        await asyncio.sleep(0)
        leave(client)
        with pytest.raises(error):
            await task
        assert not client.connection.channels
        assert stage.town.nodes[0].counts["subscriptions"] == 0
        assert stage.town.brokers[0].subscribed == set()


def _unsubscribe(client: Resident) -> None:
    node: Node = client.node
    node.channels.unsubscribe(client.connection, "notes", "c")


async def test_second_try_is_not_made_live_by_the_first_ones_answer(stage: Stage) -> None:
    last = await stage.publish(1)
    await stage.back(0)  # so that the node keeps the channel all the time
    client = stage.town.client(0)
    topics = stage.topics(0)
    first = asyncio.ensure_future(topics.recover(client.connection, "c", HOUR, last))
    await asyncio.sleep(0)
    topics.unsubscribe(client.connection, "c")
    second = asyncio.ensure_future(topics.recover(client.connection, "c", HOUR, last))
    with pytest.raises(NotSubscribed):
        await first
    assert (await second).is_recovered
    await stage.publish(2)
    await until(lambda: heard(client) == [2])


@pytest.mark.parametrize("seed", range(12))
async def test_clients_that_wander_get_everything_once_and_in_order(seed: int) -> None:
    """Nodes miss publications, reads are late, clients change nodes at any moment; history has everything."""
    chance = random.Random(seed)
    async with town(3, lambda: [Notes()]) as nodes:
        stage = Stage(nodes)
        nodes.archive.lateness = lambda: chance.randint(0, 12)
        done = asyncio.Event()
        begun = await stage.topics(0).position("c")

        async def wander() -> list[int]:
            got: list[int] = []
            since = begun
            while True:
                is_last = done.is_set()
                client, recovery = await stage.back(chance.randrange(3), since)
                assert recovery.is_recovered
                got += [int(payload) for payload in payloads(recovery)]
                await settle(chance.randint(0, 40))
                client.leave()
                live = client.notifications
                got += [each["message"] for each in live]
                since = Position.parse(live[-1]["position"]) if live else recovery.position
                if is_last and (since.offset == 150 or chance.random() < 0.01):  # its node may still be behind
                    return got

        async def break_nodes() -> None:
            while not done.is_set():
                number = chance.randrange(3)
                stage.deafen(number)
                await settle(chance.randint(1, 30))
                stage.mend(number, is_noticed=chance.random() < 0.5)
                await settle(chance.randint(1, 30))

        async def publish() -> None:
            for number in range(150):
                await stage.publish(number, by=number % 3)
                await settle(chance.randint(0, 6))

        staying = [(await stage.back(number))[0] for number in range(3)]
        wanderers = [asyncio.ensure_future(wander()) for _ in range(6)]
        breaking = asyncio.ensure_future(break_nodes())
        await publish()
        done.set()
        await breaking
        for number in range(3):
            stage.mend(number)
        expected = list(range(150))
        assert [await each for each in wanderers] == [expected] * 6
        await until(lambda: all(heard(each) == expected for each in staying))
