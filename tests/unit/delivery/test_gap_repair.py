"""Channels with a history over several nodes in one process: messages that a node misses, and reconnecting clients."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from snorky.gateway import (
    BrokerUnavailable,
    Connection,
    History,
    Position,
    Publication,
)
from snorky.gateway.protocol.publication import MARK
from snorky.gateway.testing.history import Archive, write_sequenced
from tests.support.fakes.fake_wire import JSON, MSGPACK, Client, FakeTransport, settle, until
from tests.support.fakes.memory_cluster import town
from tests.support.scenarios.history_stage import HOUR, KEY, Notes, Stage, heard, payloads

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


class Narrow(FakeTransport):
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
