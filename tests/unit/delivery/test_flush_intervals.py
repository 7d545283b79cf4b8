"""`flush_ms` of a channel rule: at most one delivery in an interval, in order, bounded, nothing lost."""

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from snorky.gateway import Service
from snorky.gateway.config.rules.channel_rules import Rules
from snorky.gateway.delivery import flush_intervals
from snorky.gateway.delivery.delivery_rules import DeliveryRules
from snorky.gateway.delivery.flush_intervals import FlushIntervals
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import house, settle, until
from tests.support.fakes.memory_cluster import Resident, Town, town
from tests.support.scenarios.pubsub_calls import ask, notifications
from tests.support.scenarios.pubsub_rules import ask as ask_kept
from tests.support.scenarios.pubsub_rules import publish, texts

SLOW, FAST, FREE = "pubsub:slow", "pubsub:fast", "chat:slow"
INTERVAL_S = {SLOW: 1.0, FAST: 0.25, FREE: 0.0}
RULES = Rules.read([{"match": "slow", "flush_ms": 1000}, {"match": "fast", "flush_ms": 250}])


class Clock:
    """Timers of a time that only `advance` moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[tuple[float, int, Any]] = []
        self.numbers = itertools.count()

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Any:
        timer = Timer(callback, args)
        heapq.heappush(self.timers, (self.now_s + delay, next(self.numbers), timer))
        return timer

    def call_soon(self, callback: Callable[..., object], *args: Any) -> Any:
        return self.call_later(0.0, callback, *args)

    def advance(self, by_s: float) -> None:
        until_s = self.now_s + by_s
        while self.timers and self.timers[0][0] <= until_s:
            self.now_s, _, timer = heapq.heappop(self.timers)
            if not timer.is_cancelled:
                timer.callback(*timer.args)
        self.now_s = until_s


class Timer:
    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback, self.args, self.is_cancelled = callback, args, False

    def cancel(self) -> None:
        self.is_cancelled = True


class Rig:
    """Records deliveries with their times. count: of the publications received, whose payloads are their numbers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.delivered: list[tuple[float, str, list[int]]] = []
        self.rules = DeliveryRules()
        self.rules.set_rules("pubsub", RULES)
        self.intervals = FlushIntervals(self.rules, self._deliver, self.clock)
        self.received: dict[str, list[int]] = {key: [] for key in INTERVAL_S}
        self.count = self.deliveries = 0
        self.fault: Exception | None = None

    def _deliver(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        self.deliveries += 1
        if self.fault is not None:
            raise self.fault
        for key, payloads in batch.items():
            self.delivered.append((self.clock.now_s, key, [int(each) for each in payloads]))

    def receive(self, *keys: str, size: int = 0) -> None:
        batch: dict[str, list[bytes]] = {}
        for key in keys:
            self.count += 1
            self.received[key].append(self.count)
            batch.setdefault(key, []).append(str(self.count).rjust(size).encode())
        self.intervals.take(batch)

    def got(self, key: str) -> list[tuple[float, list[int]]]:
        return [(at_s, numbers) for at_s, each, numbers in self.delivered if each == key]

    def numbers(self, key: str) -> list[int]:
        return [number for _, numbers in self.got(key) for number in numbers]


def test_first_is_delivered_at_once_and_the_others_together_at_the_end_of_the_interval() -> None:
    rig = Rig()
    rig.receive(SLOW)
    rig.clock.advance(0.4)
    rig.receive(SLOW)
    rig.receive(SLOW)
    assert rig.got(SLOW) == [(0.0, [1])]
    rig.clock.advance(0.6)
    assert rig.got(SLOW) == [(0.0, [1]), (1.0, [2, 3])]
    rig.receive(SLOW)  # the interval begins again after each delivery
    assert len(rig.got(SLOW)) == 2
    rig.clock.advance(3.0)
    rig.receive(SLOW)  # idle for an interval: at once again
    assert rig.got(SLOW)[2:] == [(2.0, [4]), (4.0, [5])]


def test_other_channels_are_not_delayed() -> None:
    rig = Rig()
    rig.receive(SLOW, FREE)
    rig.receive(SLOW, FREE)
    assert rig.got(FREE) == [(0.0, [2]), (0.0, [4])]
    assert rig.got(SLOW) == [(0.0, [1])]


@given(
    st.lists(
        st.one_of(
            st.lists(st.sampled_from(list(INTERVAL_S)), min_size=1, max_size=6),
            st.integers(0, 32).map(lambda sixteenths: sixteenths / 16),
        ),
        max_size=40,
    )
)
def test_any_traffic_arrives_whole_in_order_and_at_most_once_an_interval(steps: list[Any]) -> None:
    rig = Rig()
    for step in steps:
        if isinstance(step, float):
            rig.clock.advance(step)
        else:
            rig.receive(*step)
    rig.clock.advance(10.0)
    for key, interval_s in INTERVAL_S.items():
        assert rig.numbers(key) == rig.received[key]
        times = [at_s for at_s, _ in rig.got(key)]
        assert all(later - earlier >= interval_s for earlier, later in itertools.pairwise(times))
    assert not rig.intervals._waiting
    assert rig.intervals.total_bytes == 0


def test_more_than_a_channel_may_let_wait_is_delivered_at_once() -> None:
    rig = Rig()
    size = flush_intervals.CHANNEL_MAX_BYTES // 10
    for _ in range(11):
        rig.receive(SLOW, size=size)
    assert [len(numbers) for _, numbers in rig.got(SLOW)] == [1, 10]
    assert rig.numbers(SLOW) == rig.received[SLOW]
    rig.receive(SLOW)
    rig.clock.advance(1.0)
    assert rig.got(SLOW)[-1] == (1.0, [12])


def test_more_than_a_node_may_let_wait_is_delivered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush_intervals, "NODE_MAX_BYTES", 1000)
    rig = Rig()
    rig.receive(SLOW, FAST)
    rig.receive(SLOW, size=600)
    assert len(rig.got(SLOW)) == 1
    rig.receive(FAST, size=600)
    assert rig.got(FAST) == [(0.0, [2]), (0.0, [4])]
    rig.clock.advance(1.0)
    assert rig.numbers(SLOW) == rig.received[SLOW]


def test_a_node_that_drains_delays_nothing() -> None:
    rig = Rig()
    rig.receive(SLOW)
    rig.receive(SLOW)
    rig.intervals.drain()
    assert rig.got(SLOW) == [(0.0, [1]), (0.0, [2])]
    rig.receive(SLOW)
    rig.receive(SLOW)
    rig.clock.advance(5.0)
    assert rig.numbers(SLOW) == [1, 2, 3, 4]
    assert {at_s for at_s, _ in rig.got(SLOW)} == {0.0}


def test_intervals_that_end_at_the_same_time_are_one_delivery() -> None:
    rig = Rig()
    keys = [f"pubsub:slow{number}" for number in range(5)]
    rig.rules.set_rules("pubsub", Rules.read([{"match": "slow*", "flush_ms": 1000}]))
    for key in (*keys, *keys):
        rig.received[key] = []
        rig.receive(key)
    before = rig.deliveries
    rig.clock.advance(1.0)
    assert [len(rig.got(key)) for key in keys] == [2] * 5
    assert rig.deliveries == before + 1


def test_what_waits_in_a_channel_can_be_released_or_forgotten() -> None:
    rig = Rig()
    rig.receive(SLOW, FAST)
    rig.receive(SLOW, FAST)
    rig.intervals.release(SLOW)
    assert rig.numbers(SLOW) == [1, 3]
    rig.intervals.forget(FAST)
    rig.intervals.forget("pubsub:other")
    assert rig.intervals.total_bytes == 0
    rig.receive(FAST)  # the channel begins again
    rig.clock.advance(1.0)
    assert rig.numbers(FAST) == [2, 5]


def test_an_error_of_a_delivery_ends_neither_the_next_interval_nor_a_drain() -> None:
    rig = Rig()
    rig.receive(SLOW)
    rig.receive(SLOW)
    rig.fault = OSError()
    with capture_logs() as logs:
        rig.clock.advance(1.0)
        rig.receive(SLOW)
        rig.intervals.drain()
    assert [each["event"] for each in logs] == ["publications not processed"] * 2
    rig.fault = None
    rig.receive(SLOW)
    assert rig.numbers(SLOW) == [1, 4]


def test_rules_apply_from_the_next_interval_on() -> None:
    rig = Rig()
    rig.receive(SLOW)
    rig.receive(SLOW)
    rig.rules.set_rules("pubsub", Rules.read([{"match": "slow"}]))
    assert len(rig.got(SLOW)) == 1
    rig.clock.advance(1.0)
    assert rig.numbers(SLOW) == [1, 2]
    rig.receive(SLOW)
    rig.receive(SLOW)
    assert rig.numbers(SLOW) == [1, 2, 3, 4]


async def test_a_subscriber_gets_one_write_for_all_that_waited() -> None:
    async with house(PubSubService(channels=[{"match": "ticks", "flush_ms": 100}])) as built:
        client, publisher = built.client(), built.client()
        await ask(client, "subscribe", channel="ticks")
        for number in range(5):
            await ask(publisher, "publish", channel="ticks", message=number)
        await until(lambda: len(notifications(client)) == 5)
        assert [each["message"] for each in notifications(client)] == list(range(5))
        writes = [each for each in client.wire.writes if b'"ticks"' in each]
        assert [each.count(b'"ticks"') for each in writes] == [1, 4]


async def test_who_subscribes_meanwhile_gets_what_waits_once() -> None:
    def services() -> list[Service]:
        return [PubSubService(channels=[{"match": "kept:a", "history": 10, "flush_ms": 200}])]

    async with town(2, services) as nodes:
        first, publisher = nodes.client(0), nodes.client(1)
        start = (await ask_kept(first, "subscribe", recover=True))["position"]
        await publish(publisher, 1)
        await first.notified(1)  # the interval begins
        await publish(publisher, 2, 3)
        second = nodes.client(0)
        recovered = texts(await ask_kept(second, "subscribe", recover=start))
        await publish(publisher, 4)
        assert [each["message"] for each in await first.notified(4)] == [1, 2, 3, 4]
        later = await second.notified(4 - len(recovered))
        assert [*recovered, *(each["message"] for each in later)] == [1, 2, 3, 4]


async def test_a_node_delivers_what_waits_when_it_begins_to_drain() -> None:
    async with house(PubSubService(channels=[{"match": "ticks", "flush_ms": 1000}])) as built:
        client, publisher = built.client(), built.client()
        await ask(client, "subscribe", channel="ticks")
        for number in range(3):
            await ask(publisher, "publish", channel="ticks", message=number)
        await until(lambda: built.sample("snorky_delayed_bytes"))
        assert len(notifications(client)) == 1
        built.node.begin_drain()
        await settle()
        assert len(notifications(client)) == 3
        assert built.sample("snorky_delayed_bytes") == 0


KEPT = "pubsub:kept:a"
MISSED = 50  # more than the history has, so that a repair would find a gap


def few() -> list[Service]:
    return [PubSubService(channels=[{"match": "kept:a", "history": 10, "flush_ms": 1000}])]


async def waiting_publications(nodes: Town) -> Resident:
    """Return a client of node 0 with positions that has one publication, while MISSED others wait there."""
    client, publisher = nodes.client(0), nodes.client(1)
    await ask_kept(client, "subscribe", recover=True)
    await publish(publisher, 0)
    await client.notified(1)
    await publish(publisher, *range(1, 1 + MISSED))
    await until(lambda: len(nodes.nodes[0]._fanout.intervals._waiting[KEPT].payloads) == MISSED)
    return client


async def has_all(client: Resident, nodes: Town) -> None:
    assert [each.get("message") for each in await client.notified(1 + MISSED)] == list(range(1 + MISSED))
    assert not nodes.nodes[0].metrics.registry.get_sample_value("snorky_history_unrecoverable_gaps_total")


async def test_an_interruption_repairs_nothing_that_waits() -> None:
    async with town(2, few) as nodes:
        client = await waiting_publications(nodes)
        nodes.nodes[0].on_interrupted()
        await has_all(client, nodes)


async def test_a_comparison_with_the_history_repairs_nothing_that_waits() -> None:
    async with town(2, few, compare_every_s=0.1) as nodes:
        nodes.nodes[0]._repair._compare_grace_s = 0.1  # type: ignore[union-attr]
        await has_all(await waiting_publications(nodes), nodes)


async def test_a_client_that_is_ahead_of_what_waits_causes_no_gap() -> None:
    async with town(2, few) as nodes:
        ahead = nodes.client(1)
        await ask_kept(ahead, "subscribe", recover=True)
        client = await waiting_publications(nodes)
        nodes.nodes[1]._fanout.intervals.release(KEPT)
        last = (await ahead.notified(1 + MISSED))[-1]["position"]
        reply = await ask_kept(nodes.client(0), "subscribe", recover=last)
        assert (reply["recovered"], reply["messages"]) == (True, [])
        await has_all(client, nodes)


async def test_what_waits_when_the_last_subscriber_leaves_reaches_no_later_one() -> None:
    async with house(PubSubService(channels=[{"match": "ticks", "flush_ms": 1000}])) as built:
        client, publisher = built.client(), built.client()
        await ask(client, "subscribe", channel="ticks")
        for number in range(3):
            await ask(publisher, "publish", channel="ticks", message=number)
        await until(lambda: built.sample("snorky_delayed_bytes"))
        await until(lambda: len(built.node._fanout.intervals._waiting["pubsub:ticks"].payloads) == 2)
        await ask(client, "unsubscribe", channel="ticks")
        assert built.sample("snorky_delayed_bytes") == 0
        assert built.sample("snorky_drops_total", reason="no_subscriber") == 2
        later = built.client()
        await ask(later, "subscribe", channel="ticks")
        await ask(publisher, "publish", channel="ticks", message="new")
        await until(lambda: notifications(later))
        assert [each["message"] for each in notifications(later)] == ["new"]
