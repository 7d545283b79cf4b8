"""Numbers of subscribers on one node: what it reports, what it is told, and the clients that it tells."""

import asyncio
import json
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.contracts.webhooks import Exchanged, QueuedEvent
from snorky.gateway.http.protocols.pusher.counts import count_events
from snorky.gateway.http.protocols.pusher.counts.count_events import CHUNK, CountEvents
from snorky.gateway.http.protocols.pusher.counts.local_counts import LocalCounts, is_counted
from snorky.gateway.http.protocols.pusher.webhook_sender import AppWebhooks
from snorky.gateway.http.protocols.pusher.webhooks import body_of, changes_wanted
from snorky.gateway.metrics import Metrics
from tests.unit.http.protocols.pusher.test_webhook_sender import FAST, Backend, ScriptedLog, until

APP = PusherApp(id="shop", key="k", secret="s", webhook_events=(), subscription_counts=True)


class Client:
    """Records what it is told. fault: raised instead."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.told: list[tuple[str, int]] = []
        self._fault = fault

    def tell_number(self, channel: str, event: bytes) -> None:
        if self._fault is not None:
            raise self._fault
        found = json.loads(event)
        assert (found["event"], found["channel"]) == ("pusher_internal:subscription_count", channel)
        self.told.append((channel, json.loads(found["data"])["subscription_count"]))


def test_only_channels_that_are_neither_of_members_nor_of_a_user_are_counted() -> None:
    counted = ["news", "private-a", "private-encrypted-a", "cache-a", "private-cache-a"]
    names = [*counted, "presence-a", "presence-cache-a", "#server-to-user-1", "not a channel"]
    assert [each for each in names if is_counted(each)] == counted


def test_number_is_reported_when_a_client_comes_or_goes_even_if_it_is_the_same() -> None:
    counts, ann, bob = LocalCounts(), Client(), Client()
    assert counts.add("news", ann) and counts.add("news", bob) and counts.add("sport", ann)
    changes = counts.take(500)
    assert changes == [b"#2 news", b"#1 sport"]
    counts.confirm(changes)
    counts.discard("news", ann)
    counts.add("news", ann)  # a page that has reloaded: it must be told
    assert counts.take(500) == [b"#2 news"] and not counts.has_changes
    counts.discard("news", ann)
    counts.discard("sport", ann)
    assert counts.take(1) == [b"#1 news"] and counts.take(1) == [b"#0 sport"]


def test_client_that_leaves_twice_or_never_came_changes_nothing() -> None:
    counts, ann = LocalCounts(), Client()
    counts.discard("news", ann)
    counts.add("news", ann)
    counts.confirm(counts.take(500))
    counts.discard("other", ann)
    counts.discard("news", Client())
    assert not counts.has_changes


def test_channel_that_redis_need_not_know_is_not_reported_and_not_stored() -> None:
    counts, ann = LocalCounts(channels_max=1), Client()
    for number in range(1_000):  # while Redis does not answer
        counts.add(str(number), ann)
        counts.discard(str(number), ann)
    assert not counts.has_changes and not counts.has_clients("1")


def test_channels_are_bounded_and_those_that_are_counted_are_not_affected() -> None:
    counts, ann, bob = LocalCounts(channels_max=2), Client(), Client()
    assert counts.add("a", ann) and counts.add("b", ann) and not counts.add("c", ann) and counts.add("a", bob)
    assert counts.take(500) == [b"#2 a", b"#1 b"]
    counts.discard("c", ann)
    counts.discard("b", ann)
    assert counts.add("c", ann)


def test_after_a_fence_or_a_loss_all_numbers_are_reported_and_strange_ones_are_ended() -> None:
    counts, ann = LocalCounts(), Client()
    counts.add("news", ann)
    counts.add("sport", ann)
    counts.confirm(counts.take(500))
    counts.renew(())
    assert counts.take(500) == [b"#1 news", b"#1 sport"]
    counts.renew(["o news", "n stray", "n news"])
    assert counts.take(500) == [b"#0 stray", b"#1 news", b"#1 sport"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.booleans(), st.sampled_from("trcf "))))
def test_redis_knows_the_numbers_once_all_is_confirmed(steps: list[tuple[str, int, bool, str]]) -> None:
    counts, clients = LocalCounts(), [Client() for _ in range(3)]
    true: set[tuple[str, int]] = set()
    known: dict[str, int] = {}
    taken: list[bytes] = []

    def applied() -> None:
        for change in taken:
            number, _, channel = change[1:].decode().partition(" ")
            known[channel] = int(number)

    def confirm() -> None:
        applied()
        counts.confirm(taken)
        taken.clear()

    for channel, number, is_there, then in steps:
        if is_there:
            counts.add(channel, clients[number])
            true.add((channel, number))
        else:
            counts.discard(channel, clients[number])
            true.discard((channel, number))
        if then == "t" and not taken:
            taken += counts.take(1)
        elif then == "r":  # repeated, because its outcome is not known
            applied()
        elif then == "c":
            confirm()
        elif then == "f":
            known.clear()
            taken.clear()
            counts.renew(())
    confirm()
    taken += counts.take(500)
    confirm()
    expected = {each: len([one for one, _ in true if one == each]) for each in "ab"}
    assert {each: known.get(each, 0) for each in "ab"} == expected


async def test_only_the_last_number_is_told_and_only_to_subscribers() -> None:
    counts, ann, bob = LocalCounts(), Client(), Client()
    counts.add("news", ann)
    counts.add("sport", bob)
    events = CountEvents(counts)
    events.add([("news", 1), ("sport", 5), ("news", 2), ("other", 3)])
    task = asyncio.create_task(events.run())
    await until(lambda: ann.told and bob.told)
    assert (ann.told, bob.told) == ([("news", 2)], [("sport", 5)])
    events.add([("news", 2)])
    await until(lambda: len(ann.told) == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_fault_of_one_client_does_not_affect_the_others() -> None:
    counts, others = LocalCounts(), [Client() for _ in range(20)]
    for client in (*others[:10], Client(RuntimeError("of a test")), *others[10:]):
        counts.add("news", client)
    events = CountEvents(counts)
    task = asyncio.create_task(events.run())
    events.add([("news", 21)])
    await until(lambda: all(each.told for each in others))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_many_clients_are_told_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_events, "CHUNK", 10)
    assert CHUNK > 10
    counts, clients = LocalCounts(), [Client() for _ in range(100)]
    for client in clients:
        counts.add("news", client)
    events = CountEvents(counts)
    events.add([("news", 100)])
    task = asyncio.create_task(events.run())
    seen = []
    while (told := sum(len(each.told) for each in clients)) < 100:
        seen.append(told)
        await asyncio.sleep(0)
    assert len(seen) > 5
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class NumberedLog(ScriptedLog):
    """Returns numbers with the next exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: Sequence[tuple[str, int]] = ()

    async def exchange(self, changes: Sequence[bytes], *, is_reset: bool = False) -> Exchanged:
        found = await super().exchange(changes, is_reset=is_reset)
        if found.status != "ok":
            return found
        numbers, self.numbers = self.numbers, ()
        return Exchanged(found.status, found.waiting, numbers=numbers)


def made(app: PusherApp = APP) -> tuple[NumberedLog, AppWebhooks, Metrics]:
    log, metrics = NumberedLog(), Metrics()
    return log, AppWebhooks(app, log, Backend().post, metrics, pace=FAST), metrics


async def test_node_reports_its_numbers_and_tells_clients_those_of_all_nodes() -> None:
    log, webhooks, _ = made()
    ann = Client()
    webhooks.start()
    webhooks.count("news", ann, is_subscribed=True)
    await until(lambda: log.exchanges == [[b"#1 news"]])
    log.numbers = [("news", 7)]
    await until(lambda: ann.told == [("news", 7)])
    webhooks.count("news", ann, is_subscribed=False)
    await until(lambda: log.exchanges == [[b"#1 news"], [b"#0 news"]])
    await webhooks.stop()


async def test_numbers_are_reported_again_after_a_fence_and_after_a_loss() -> None:
    log, webhooks, _ = made()
    webhooks.count("news", Client(), is_subscribed=True)
    webhooks.start()
    await until(lambda: len(log.exchanges) == 1)
    log.answers = [Exchanged("fenced")]
    webhooks.count("sport", Client(), is_subscribed=True)
    await until(lambda: len(log.exchanges) == 3)
    assert log.exchanges[2] == [b"#1 news", b"#1 sport"]
    log.known = ["o other", "n news", "n stray"]
    log.answers = [Exchanged("lost")]
    webhooks.count("sport", Client(), is_subscribed=True)
    await until(lambda: len(log.exchanges) >= 5)
    assert log.exchanges[4] == [b"-o other", b"#0 stray", b"#1 news", b"#2 sport"]
    await webhooks.stop()


async def test_exchange_is_bounded_and_facts_come_before_numbers() -> None:
    log, webhooks, _ = made(
        PusherApp(id="shop", key="k", secret="s", webhook_events=("channel_occupied",), subscription_counts=True)
    )
    for number in range(300):
        webhooks.channel_changed(f"c{number}", is_occupied=True)
        webhooks.count(f"c{number}", Client(), is_subscribed=True)
    webhooks.start()
    await until(lambda: len(log.exchanges) == 3)
    assert [len(each) for each in log.exchanges] == [400, 100, 100]
    assert log.exchanges[0][299:301] == [b"+o c299", b"#1 c0"]
    await webhooks.stop()


async def test_subscriber_beyond_the_bound_is_counted_as_a_hit_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalCounts.__init__, "__kwdefaults__", {"channels_max": 1})
    log, webhooks, metrics = made()
    webhooks.start()
    webhooks.count("news", Client(), is_subscribed=True)
    webhooks.count("sport", Client(), is_subscribed=True)
    sample = metrics.registry.get_sample_value
    assert sample("snorky_limit_hits_total", {"limit": "counted_channels"}) == 1
    await until(lambda: log.exchanges)
    assert log.exchanges == [[b"#1 news"]]
    await webhooks.stop()


async def test_app_that_has_no_webhook_sends_no_request() -> None:
    requests = list[str]()

    async def post(url: str, _body: bytes, _headers: Mapping[str, str]) -> None:
        requests.append(url)

    log = NumberedLog()
    log.queue = [QueuedEvent("1-0", b"#1 news", 1, 0.0)]  # of an earlier configuration
    webhooks = AppWebhooks(APP, log, post, Metrics(), pace=FAST)
    webhooks.start()
    await log.some_rounds()
    await webhooks.stop()
    assert not requests and not webhooks.has_facts


def test_what_an_app_wants_of_numbers() -> None:
    assert changes_wanted(APP) == ["=n"]
    hooked = PusherApp(
        id="a", key="k", secret="s", webhook_events=("cache_miss", "subscription_count"), subscription_counts=True
    )
    assert changes_wanted(hooked) == ["=n", "#n"]


def test_webhook_has_the_name_of_the_protocol() -> None:
    body = body_of([QueuedEvent("1-0", b"#12 private-a", 1, 0.0)], 5)
    event = {"name": "subscription_count", "channel": "private-a", "subscription_count": 12}
    assert json.loads(body)["events"] == [event]
