"""Channels with a history over several nodes in one process: messages that a node misses, and reconnecting clients."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway import (
    PAYLOAD,
    AlreadySubscribed,
    BrokerUnavailable,
    ConfigurationError,
    Connection,
    ConnectionClosed,
    History,
    Node,
    NotSubscribed,
    Position,
    Publication,
    Recovery,
    Service,
    Topics,
)
from snorky.gateway.protocol.publication import MARK
from tests.support.fakes.fake_wire import JSON, MSGPACK, Client, FakeWire, settle, until
from tests.support.fakes.memory_cluster import Resident, Town, town
from tests.support.fakes.memory_history import Archive, MemoryHistory, write_sequenced

HOUR = History(3600.0, 1000)
KEY = "notes:c"


class Notes(Service):
    """A service that only exposes its topics."""

    def __init__(self) -> None:
        super().__init__("notes")

    def on_message(self, connection: Any, message: Any) -> None: ...

    def notification(self, channel: Any) -> Any:
        return PAYLOAD if channel == "bare" else {"type": "message", "channel": channel, "message": PAYLOAD}


class Stage:
    """Three nodes with one service."""

    def __init__(self, nodes: Town) -> None:
        self.town = nodes

    def topics(self, number: int) -> Topics:
        return self.town.registries[number]["notes"].topics

    async def publish(self, *values: Any, by: int = 2, history: History = HOUR, channel: Any = "c") -> Position:
        for value in values:
            position = await self.topics(by).publish(channel, value, history=history)
        return position

    async def plain(self, number: int, channel: Any = "c", *, history: History | None = HOUR) -> Resident:
        client = self.town.client(number)
        await self.topics(number).subscribe(client.connection, channel, history=history)
        return client

    async def back(self, number: int, since: Position | None = None, channel: Any = "c") -> tuple[Resident, Recovery]:
        client = self.town.client(number)
        return client, await self.topics(number).recover(client.connection, channel, HOUR, since)

    def deafen(self, number: int) -> None:
        """Drop publications to a node from now on."""
        self.town.brokers[number].is_lossy = True

    def mend(self, number: int, *, is_noticed: bool = True) -> None:
        """Drop no more."""
        self.town.brokers[number].is_lossy = False
        if is_noticed:
            self.town.nodes[number].on_interrupted()

    def sample(self, number: int, name: str, **labels: str) -> float:
        return self.town.nodes[number].metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with town(3, lambda: [Notes()]) as nodes:
        yield Stage(nodes)


def payloads(recovery: Recovery) -> list[bytes]:
    return [publication.payload for publication in recovery.publications]


def heard(client: Resident) -> list[Any]:
    """Payloads that it was notified of, and "gap"."""
    return ["gap" if each["type"] == "gap" else each["message"] for each in client.inbox]


# -- missed messages ------------------------------------------------------------------------------------------------


async def test_missed_messages_are_filled_in_order_for_all_and_no_client_is_closed(stage: Stage) -> None:
    (one, _), two = await stage.back(0), await stage.plain(0)
    await stage.publish(1)
    await settle()
    stage.deafen(0)
    await stage.publish(2, 3)
    await settle()
    stage.mend(0, is_noticed=False)
    await stage.publish(4)
    await until(lambda: heard(one) == heard(two) == [1, 2, 3, 4])
    assert not one.wire.closes and not two.wire.closes
    assert stage.sample(0, "snorky_history_filled_publications_total") == 3
    assert stage.sample(0, "snorky_history_unrecoverable_gaps_total") == 0


async def test_last_publication_before_a_silence_is_filled_after_an_interruption(stage: Stage) -> None:
    one, _ = await stage.back(0)
    stage.deafen(0)
    await stage.publish(1)
    await settle()
    assert heard(one) == []
    stage.mend(0)
    await until(lambda: heard(one) == [1])


async def test_last_publication_that_is_lost_without_a_sign_is_found_by_comparing() -> None:
    async with town(3, lambda: [Notes()], compare_every_s=0.05) as nodes:
        stage = Stage(nodes)
        one, _ = await stage.back(0)
        stage.deafen(0)
        await stage.publish(1)
        await settle()
        stage.mend(0, is_noticed=False)
        await until(lambda: heard(one) == [1])


async def test_interruption_heals_all_channels_with_one_fill_each_however_many_clients(stage: Stage) -> None:
    channels = [f"c{number}" for number in range(50)]
    clients = [(await stage.back(0, channel=channel))[0] for channel in channels for _ in range(3)]
    stage.deafen(0)
    for channel in channels[:40]:
        await stage.publish(1, channel=channel)
    await settle()
    stage.mend(0)
    await until(lambda: sum(map(len, map(heard, clients))) == 120)
    assert stage.sample(0, "snorky_history_gap_repairs_total") == 40, "ten channels missed nothing"


async def test_at_most_sixteen_fills_are_under_way() -> None:
    class Counting(Archive):
        under_way = most = 0

    async with town(3, lambda: [Notes()]) as nodes:
        stage, counts = Stage(nodes), Counting()
        keeper = nodes.nodes[0].channels.history_store
        read = keeper.read

        async def counted(*args: Any, **kwargs: Any) -> Any:
            counts.under_way += 1
            counts.most = max(counts.most, counts.under_way)
            try:
                await settle(5)
                return await read(*args, **kwargs)
            finally:
                counts.under_way -= 1

        clients = [(await stage.back(0, channel=f"c{number}"))[0] for number in range(60)]
        keeper.read = counted  # type: ignore[method-assign]
        stage.deafen(0)
        for number in range(60):
            await stage.publish(1, channel=f"c{number}")
        await settle()
        stage.mend(0)
        await until(lambda: all(heard(client) == [1] for client in clients))
        assert counts.most == 16


async def test_fill_is_tried_until_history_answers(stage: Stage) -> None:
    one, _ = await stage.back(0)
    stage.deafen(0)
    await stage.publish(1, 2)
    await settle()
    stage.mend(0, is_noticed=False)
    failures = 2

    def fail() -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise BrokerUnavailable("not now")

    stage.town.archive.before_read = fail
    await stage.publish(3)
    await until(lambda: heard(one) == [1, 2, 3])
    assert failures < 0


async def test_fault_of_ours_does_not_make_a_channel_silent(stage: Stage) -> None:
    one, _ = await stage.back(0)
    keeper = stage.town.nodes[0].channels.history_store
    with capture_logs() as logs:
        for name in ("read", "positions"):
            works = getattr(keeper, name)

            async def fail(*args: Any, works: Any = works, name: str = name, **kwargs: Any) -> Any:
                setattr(keeper, name, works)
                raise ValueError("a fault")

            setattr(keeper, name, fail)
        stage.deafen(0)
        await stage.publish(1)
        await settle()
        stage.mend(0)
        await until(lambda: heard(one) == [1])
    assert [log["event"] for log in logs if log["log_level"] == "error"] == [
        "histories were not compared",
        "a fill failed",
    ]


async def test_comparison_after_an_interruption_is_tried_until_history_answers(stage: Stage) -> None:
    one, _ = await stage.back(0)
    stage.deafen(0)
    await stage.publish(1, 2)
    await settle()
    stage.town.archive.is_failing = True
    stage.mend(0)
    await settle()
    assert heard(one) == []
    stage.town.archive.is_failing = False
    await until(lambda: heard(one) == [1, 2])


class Narrow(FakeWire):
    """A wire that accepts 20 kB per loop iteration, and buffers the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.connection: Connection | None = None

    def write(self, data: bytes) -> None:
        super().write(data)
        self.buffered += len(data)
        if self.connection is not None and self.buffered > 65_536:
            self.connection.pause()
        asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        was_full = self.buffered > 65_536
        self.buffered = max(0, self.buffered - 20_000)
        if was_full and self.buffered <= 65_536 and self.connection is not None:
            self.connection.resume()
        if self.buffered:
            asyncio.get_running_loop().call_soon(self._drain)


async def test_large_fill_is_no_more_at_once_than_clients_take(stage: Stage) -> None:
    one = stage.town.client(0)
    one.wire = wire = Narrow()
    one.connection = wire.connection = stage.town.nodes[0].new_connection(wire, JSON)
    stage.town.nodes[0].connect(one.connection, stage.town.registries[0])
    await stage.topics(0).recover(one.connection, "c", HOUR)
    stage.deafen(0)
    for number in range(60):
        await stage.publish([number, "x" * 50_000])
    await settle()
    stage.mend(0)
    await until(lambda: stage.sample(0, "snorky_history_gap_repairs_total") == 1)
    for number in range(60, 70):
        await stage.publish([number, "x"])
    await until(lambda: wire.closes or len(heard(one)) == 70)
    assert not wire.closes, "3 MB at once would be more than may wait for a client"
    assert [number for number, _ in heard(one)] == list(range(70))


async def test_gap_is_reported_only_to_recovering_clients(stage: Stage) -> None:
    (one, _), two = await stage.back(0), await stage.plain(0)
    packed = Client(stage.town.nodes[0], stage.town.registries[0], MSGPACK)
    await stage.topics(0).recover(packed.connection, "c", HOUR)
    await stage.publish(1)
    await settle()
    stage.deafen(0)
    await stage.publish(2, 3, history=History(3600.0, 1))
    await settle()
    stage.mend(0)
    await until(lambda: heard(one) == [1, "gap", 3])
    position = await stage.publish(4)
    await until(lambda: heard(one) == [1, "gap", 3, 4])
    assert heard(two) == [1, 3, 4]
    gap = one.notifications[1]
    assert gap["channel"] == "c" and gap["position"].split(":")[:2] == [position.epoch, "2"]
    assert [message["type"] for message in packed.messages] == ["message", "gap", "message", "message"]
    assert not one.wire.closes and not two.wire.closes


async def test_the_position_of_a_gap_can_be_resumed_from(stage: Stage) -> None:
    one, _ = await stage.back(0)
    stage.town.archive.flush()
    await stage.publish(1, 2)
    await until(lambda: heard(one) == ["gap", 1, 2])
    _, recovery = await stage.back(1, Position.parse(one.notifications[0]["position"]))
    assert recovery.is_recovered and payloads(recovery) == [b"1", b"2"]


@pytest.mark.parametrize("is_published_to", [True, False])
async def test_lost_history_is_one_gap_a_channel_and_no_more(stage: Stage, is_published_to: bool) -> None:
    one, _ = await stage.back(0)
    await stage.publish(1)
    await settle()
    stage.town.archive.flush()
    if is_published_to:
        await stage.publish(2)
    stage.mend(0)
    await until(lambda: "gap" in heard(one))
    await stage.publish(3)
    await settle(50)
    assert heard(one) == [1, "gap", *([2] if is_published_to else []), 3]


async def test_bare_publication_is_delivered_at_once_even_while_history_is_read(stage: Stage) -> None:
    one, _ = await stage.back(0)
    stage.deafen(0)
    await stage.publish(1)
    await settle()
    stage.town.archive.is_failing = True
    stage.mend(0)
    await settle()
    stage.topics(1).publish("c", "bare")
    await until(lambda: heard(one) == ["bare"])
    assert one.notifications == [{"type": "message", "channel": "c", "message": "bare"}]
    stage.town.archive.is_failing = False
    await until(lambda: heard(one) == ["bare", 1])


async def test_invalid_payload_keeps_its_offset_as_a_tombstone(stage: Stage) -> None:
    (one, recovery), two = await stage.back(0), await stage.plain(0)
    before = recovery.position
    poison = Publication(b"NaN", Position(before.epoch, 1, "t1"), before.tag)
    stage.town.bus.publish(KEY, write_sequenced(poison))
    packed = MARK + f"1 {before.epoch}:2:t2 t1 m\n".encode() + b"\x81\xa1a\x01"
    stage.town.bus.publish(KEY, packed)
    await until(lambda: heard(two) == [{"a": 1}])
    assert one.notifications == [
        {
            "type": "message",
            "channel": "c",
            "message": None,
            "tombstone": True,
            "offset": 1,
            "position": f"{before.epoch}:1:t1",
        },
        {"type": "message", "channel": "c", "message": {"a": 1}, "offset": 2, "position": f"{before.epoch}:2:t2"},
    ]
    assert stage.sample(0, "snorky_drops_total", reason="invalid") == 1


async def test_oversized_message_keeps_its_place_as_a_tombstone_too(stage: Stage) -> None:
    one, recovery = await stage.back(0)
    before = recovery.position
    large = Publication(b'"%b"' % (b"x" * (1 << 20)), Position(before.epoch, 1, "t1"), before.tag)
    stage.town.bus.publish(KEY, write_sequenced(large))
    stage.town.bus.publish(KEY, write_sequenced(Publication(b"2", Position(before.epoch, 2, "t2"), "t1")))
    await until(lambda: heard(one) == [None, 2])
    assert one.notifications[0]["tombstone"] is True
    assert stage.sample(0, "snorky_drops_total", reason="too_large") == 1
    assert stage.sample(0, "snorky_history_unrecoverable_gaps_total") == 0


async def test_oversized_message_is_a_tombstone_for_clients_recovering_at_that_moment(stage: Stage) -> None:
    one, recovery = await stage.back(0)
    begun = recovery.position
    stage.town.archive.lateness = lambda: 20
    recovering = asyncio.ensure_future(stage.back(0, begun))
    await settle(5)  # it reads; publications are buffered for it meanwhile
    large = Publication(b'"%b"' % (b"x" * (1 << 20)), Position(begun.epoch, 1, "t1"), begun.tag)
    stage.town.bus.publish(KEY, write_sequenced(large))
    two, recovery = await recovering
    assert payloads(recovery) == [b"null"] and recovery.publications[0].is_tombstone
    assert heard(one) == [None] and heard(two) == []


async def test_first_recovering_client_takes_nothing_from_earlier_subscribers(stage: Stage) -> None:
    before = await stage.plain(0, history=None)
    stage.town.brokers[0].hold()
    await stage.publish(1, 2)
    one, recovery = await stage.back(0)
    assert recovery.position.offset == 2, "it begins after messages in flight"
    stage.town.brokers[0].let_go()
    await stage.publish(3)
    await until(lambda: heard(before) == [1, 2, 3])
    assert heard(one) == [3]


# -- listeners ------------------------------------------------------------------------------------------------------


async def test_listener_gets_all_in_order_and_the_gap_in_its_place(stage: Stage) -> None:
    seen: list[Any] = []
    await stage.topics(0).listen(
        "c",
        lambda batch: seen.extend(each.payload for each in batch),
        history=HOUR,
        on_gap=lambda position: seen.append(position.offset),
    )
    await stage.publish(1)
    await settle()
    stage.deafen(0)
    await stage.publish(2)
    await settle()
    stage.mend(0)
    await until(lambda: seen == [b"1", b"2"])
    stage.town.archive.flush()
    await stage.publish(3)
    await until(lambda: seen == [b"1", b"2", 0, b"3"])
    stage.topics(0).unlisten("c")
    assert KEY not in stage.town.brokers[0].subscribed


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


async def test_replay_is_capped_in_messages_and_bytes_and_then_a_reported_gap(stage: Stage) -> None:
    _, begun = await stage.back(0)
    await stage.publish(*range(300))
    _, recovery = await stage.back(1, begun.position)
    assert recovery.is_recovered and len(recovery.publications) == 300
    last = await stage.publish(300)
    one, recovery = await stage.back(1, begun.position)
    assert recovery == Recovery(last, False, [])
    await stage.publish(301)
    await until(lambda: heard(one) == [301])
    before = await stage.topics(0).position("large")
    await stage.publish("x" * 600_000, channel="large")
    _, recovery = await stage.back(1, before, "large")
    assert recovery.is_recovered
    await stage.publish("x" * 600_000, channel="large")
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
                if is_last:
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


# -- publications without history ------------------------------------------------------------------------------------


async def test_publication_past_history_is_counted_and_logged_and_clients_that_were_away_get_a_gap(
    stage: Stage,
) -> None:
    history_filter = await stage.plain(0)
    before = await stage.publish(1)
    with capture_logs() as logs:
        stage.topics(1).publish("c", "bare")
        await until(lambda: heard(history_filter) == [1, "bare"])
        await until(lambda: KEY in stage.town.archive.lost)
    assert stage.sample(0, "snorky_unkept_publications_total") == 1
    assert [log["channel"] for log in logs if log["event"] == "publication not kept"] == [KEY]
    _, recovery = await stage.back(2, before)
    assert not recovery.is_recovered
    after = await stage.publish(2)
    await stage.publish(3)
    _, recovery = await stage.back(1, after)
    assert recovery.is_recovered and payloads(recovery) == [b"3"]
    await until(lambda: heard(history_filter) == [1, "bare", 2, 3])


async def test_publication_past_history_while_clients_recover_is_a_gap_for_all_of_them(stage: Stage) -> None:
    history_filter = await stage.plain(0)
    since = await stage.publish(1)
    stage.town.archive.lateness = lambda: 50
    first = asyncio.ensure_future(stage.back(0, since))  # has the channel, and gets nothing yet
    await settle(5)
    stage.topics(1).publish("c", "bare")
    await until(lambda: heard(history_filter) == [1, "bare"])
    second = asyncio.ensure_future(stage.back(0, since))  # the read of the first began before
    for client, recovery in await asyncio.gather(first, second):
        assert heard(client) == [] and not recovery.is_recovered
    stage.town.archive.lateness = lambda: 1
    after = await stage.publish(2)
    await until(lambda: heard(history_filter) == [1, "bare", 2])
    _, recovery = await stage.back(0, after)
    assert recovery.is_recovered


async def test_client_that_resumes_after_an_unstored_publication_shares_no_earlier_read(stage: Stage) -> None:
    history_filter = await stage.plain(0)
    since = await stage.publish(1)
    stage.town.archive.lateness = lambda: 300
    first = asyncio.ensure_future(stage.back(0, since))
    await settle(5)
    stage.topics(1).publish("c", "bare")
    await settle(50)
    assert heard(history_filter) == [1, "bare"] and KEY in stage.town.archive.lost, "it is noticed after the first read"
    second = asyncio.ensure_future(stage.back(0, since))
    await settle(5)
    assert not first.done(), "the answer to the first read is still to come"
    for client, recovery in await asyncio.gather(first, second):
        assert heard(client) == [] and not recovery.is_recovered


async def test_client_that_resumes_before_an_unstored_publication_is_noticed_gets_a_gap(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    noting = asyncio.Event()

    async def note_lost(keeper: MemoryHistory, key: str) -> None:
        await noting.wait()

    monkeypatch.setattr(MemoryHistory, "note_lost", note_lost)
    history_filter = await stage.plain(0)
    since = await stage.publish(1)
    stage.topics(1).publish("c", "bare")
    await until(lambda: heard(history_filter) == [1, "bare"])
    _, recovery = await stage.back(0, since)
    assert not recovery.is_recovered
    noting.set()


async def test_publication_past_history_is_noted_once_redis_answers_again(stage: Stage) -> None:
    history_filter = await stage.plain(0)
    await stage.publish(1)
    stage.town.archive.is_failing = True
    stage.topics(1).publish("c", "bare")
    await until(lambda: heard(history_filter) == [1, "bare"])
    await settle()
    assert KEY not in stage.town.archive.lost
    stage.town.archive.is_failing = False
    await until(lambda: KEY in stage.town.archive.lost)
