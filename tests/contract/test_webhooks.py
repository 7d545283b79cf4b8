"""What nodes share for an app's webhooks: one contract, for every supported server, several of them, and a Cluster."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest

from snorky.gateway.contracts.webhooks import Exchanged
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.backend import RedisBackend
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.keys import webhooks_key
from snorky.gateway.redis.webhooks import RedisWebhookLog, WebhookTimings
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import KINDS
from tests.support.servers.shared import SharedServers

WITHIN_S = 30.0
QUICK = WebhookTimings(
    ttl_s=0.3, sighting_s=0.1, gap_s=5.0, late_s=0.0, number_every_s=0.0, many_every_s=0.0, numbers_after_s=0.0
)
ALL = ("+o", "-o", "+m", "-m")
NUMBERS = ("=n", "#n")
Make = Callable[..., RedisWebhookLog]


@pytest.fixture(params=[*KINDS, "spread", "cluster"])
async def make(request: pytest.FixtureRequest, shared: SharedServers) -> AsyncIterator[Make]:
    async with shared.lend(request.param) as server:
        made: list[RedisWebhookLog] = []

        def log(
            node_id: str,
            timings: WebhookTimings = QUICK,
            *,
            wanted: Sequence[str] = ALL,
            events_max: int = 1000,
            queue_max_bytes: int = 100_000,
        ) -> RedisWebhookLog:
            backend = RedisBackend.of(server.url, prefix="test", node_id=node_id, metrics=Metrics())
            found = RedisWebhookLog(
                backend.parts.of("webhooks shop").commands("webhooks", 2.0),
                prefix="test",
                app_id="shop",
                node_id=node_id,
                wanted=wanted,
                timings=timings,
                events_max=events_max,
                queue_max_bytes=queue_max_bytes,
            )
            found.start(lambda: None)
            made.append(found)
            return found

        yield log
        for each in made:
            await each.stop()


async def queued(log: RedisWebhookLog) -> list[str]:
    return [each.event.decode() for each in await log.head(1000)]


async def take(log: RedisWebhookLog, *changes: str, may_send: bool = True) -> Exchanged:
    found = await log.exchange([*([b"!"] if may_send else []), *(each.encode() for each in changes)])
    assert found.status == "ok"
    return found


async def until_told(log: RedisWebhookLog, *numbers: tuple[str, int]) -> float:
    """Renew a lease until Redis has returned these numbers, and no others; returns the loop time before the last."""
    told: list[tuple[str, int]] = []
    asked_s = 0.0

    async def are_told() -> bool:
        nonlocal asked_s
        asked_s = asyncio.get_running_loop().time()
        told.extend((await take(log)).numbers)
        return told == list(numbers)

    try:
        await eventually(are_told, within_s=WITHIN_S, what=f"told: {numbers}")
    except AssertionError as error:
        raise AssertionError(f"{error}; told: {told}") from None
    return asked_s


async def until_queued(log: RedisWebhookLog, *events: str) -> None:
    """Renew a lease until the queue has these events."""

    async def has_them() -> bool:
        await take(log)
        return await queued(log) == list(events)

    await eventually(has_them, within_s=WITHIN_S, what=f"queued: {events}")


async def test_fact_begins_with_the_first_node_and_ends_after_the_last(make: Make) -> None:
    one, other = make("n1"), make("n2")
    await take(one, "+o news", "+m news ann")
    await take(other, "+o news", "+m news ann", "+m news bob")
    assert await queued(one) == ["+o news", "+m news ann", "+m news bob"]
    await take(one, "-m news ann", "-o news")
    await take(other, "-m news bob")
    await until_queued(one, "+o news", "+m news ann", "+m news bob", "-m news bob")
    await take(other, "-m news ann", "-o news")
    await until_queued(one, "+o news", "+m news ann", "+m news bob", "-m news bob", "-m news ann", "-o news")


async def test_fact_that_a_node_claims_again_in_time_has_neither_ended_nor_begun(make: Make) -> None:
    one, other = make("n1", WebhookTimings()), make("n2", WebhookTimings())
    await take(one, "+o news")
    await take(one, "-o news")
    await take(other, "+o news")
    assert await queued(one) == ["+o news"]


async def test_repeated_exchange_is_applied_once(make: Make) -> None:
    log = make("n1")
    await take(log, "+o news")
    await take(log, '{"name":"client_event"}')
    log._number -= 1  # as if the answer had been lost
    await take(log, '{"name":"client_event"}')
    assert await queued(log) == ["+o news", '{"name":"client_event"}']
    await take(log, '{"name":"cache_miss"}')
    assert (await queued(log))[2:] == ['{"name":"cache_miss"}']


async def test_only_wanted_changes_make_events(make: Make) -> None:
    log = make("n1", wanted=("-o", "+m"))
    await take(log, "+o news", "+m news ann")
    await take(log, "-m news ann", "-o news")
    await until_queued(log, "+m news ann", "-o news")


async def test_queue_is_bounded_in_number_and_reports_of_clients_get_half_of_it(make: Make) -> None:
    log = make("n1", events_max=4)
    found = await take(log, *["{}"] * 3, *(f"+o c{number}" for number in range(5)))
    assert (found.waiting, found.dropped) == (4, 4)
    assert await queued(log) == ["{}", "{}", "+o c0", "+o c1"]
    assert await log.sent((await log.head(3))[-1].id) == 1
    assert (await take(log, "+o more")).waiting == 2


async def test_queue_is_bounded_in_bytes(make: Make) -> None:
    log = make("n1", queue_max_bytes=100)
    found = await take(log, '{"long":"' + "x" * 50 + '"}', "+o " + "c" * 60, "+o " + "d" * 60)
    assert (found.waiting, found.dropped) == (1, 2)


async def test_one_node_sends_and_only_it_removes_what_was_sent(make: Make) -> None:
    timings = replace(QUICK, ttl_s=60.0)
    one, other = make("n1", timings), make("n2", timings)
    await take(one, "+o news", "+o sport")
    await take(other)
    assert (one.is_sender, other.is_sender) == (True, False)
    first, second = await one.head(10)
    assert first.time_ms <= second.time_ms and 0 <= second.age_s < WITHIN_S
    await other.sent(second.id)
    assert len(await one.head(10)) == 2
    assert await one.sent(first.id) == 1
    assert [each.id for each in await one.head(10)] == [second.id]


async def test_next_sender_is_another_node_when_one_resigns(make: Make) -> None:
    one, other = make("n1"), make("n2")
    await take(one, "+o news")
    await take(one, "-o news")
    await one.resign()
    assert not one.is_sender
    await take(other)
    assert other.is_sender
    await until_queued(other, "+o news", "-o news")


async def test_only_a_node_that_may_send_becomes_the_sender(make: Make) -> None:
    timings = replace(QUICK, ttl_s=60.0)
    one, other = make("n1", timings, wanted=NUMBERS), make("n2", timings, wanted=NUMBERS)
    await take(one, "#1 news", may_send=False)
    assert not one.is_sender
    await take(other)
    assert other.is_sender
    await take(one, may_send=False)
    await take(other)
    assert (one.is_sender, other.is_sender) == (False, True)
    assert await other.sent((await other.head(10))[-1].id) == 0


async def test_sender_that_may_not_send_any_more_loses_the_role_at_once(make: Make) -> None:
    timings = replace(QUICK, ttl_s=60.0)
    one, other = make("n1", timings), make("n2", timings)
    await take(one, "+o news")
    assert one.is_sender
    await take(one, may_send=False)
    assert not one.is_sender
    await one.sent((await one.head(10))[-1].id)
    assert await queued(one) == ["+o news"], "it removes nothing either"
    await take(other)
    assert other.is_sender


async def test_sender_that_died_is_followed_only_by_a_node_that_may_send(make: Make) -> None:
    one, counting = make("n1"), make("n2")
    await take(one, "+o news")

    async def has_ended() -> bool:
        await take(counting, may_send=False)
        assert not counting.is_sender
        return await queued(counting) == ["+o news", "-o news"]

    await eventually(has_ended, within_s=WITHIN_S, what="the dead node is fenced")
    other = make("n3")
    await take(other)
    assert other.is_sender


async def test_dead_node_is_fenced_and_its_facts_end_members_first(make: Make) -> None:
    one, other = make("n1"), make("n2")
    await take(one, "+o news", "+m news ann", "+o sport")
    await take(other, "+o sport")
    began = ["+o news", "+m news ann", "+o sport"]
    await until_queued(other, *began, "-m news ann", "-o news")
    assert other.is_sender
    assert (await one.exchange([b"+o late"])).status == "fenced"
    await take(one, "+o news")  # under another id
    await until_queued(other, *began, "-m news ann", "-o news", "+o news")


async def test_node_that_renews_is_not_fenced(make: Make) -> None:
    timings = WebhookTimings(ttl_s=0.5, sighting_s=0.5, gap_s=5.0, late_s=0.0)
    one, other = make("n1", timings), make("n2", timings)
    await take(one, "+o news")
    ends_s = asyncio.get_running_loop().time() + 1.5  # three leases
    while asyncio.get_running_loop().time() < ends_s:
        await take(one)
        await take(other)
        await asyncio.sleep(0.02)
    assert await queued(one) == ["+o news"]


async def test_no_node_is_fenced_because_redis_was_silent(make: Make) -> None:
    silent = WebhookTimings(ttl_s=0.05, sighting_s=0.1, gap_s=0.08, late_s=0.0)
    one, other = make("n1", silent), make("n2", silent)
    await take(one, "+o news")
    for _ in range(4):
        await asyncio.sleep(0.15)  # no exchange of any node in this time
        await take(other)
    assert await queued(other) == ["+o news"]
    assert (await one.exchange([])).status == "ok"


async def test_state_that_redis_lost_is_noticed_and_restored_without_events(make: Make) -> None:
    log = make("n1")
    await take(log, "+o news", "+o sport")
    parts = ("owners", "state", "counts", "queue", f"facts:{log._owner}")
    await log._scripts.run(*(command(b"DEL", webhooks_key("test", "shop", part)) for part in parts))
    assert (await log.exchange([b"+o more"])).status == "lost"
    assert await log.held() == []
    assert (await log.exchange([b"=o news", b"=o sport"], is_reset=True)).status == "ok"
    await take(log, "+o more", "-o news")
    await until_queued(log, "+o more", "-o news")
    assert sorted(await log.held()) == ["o more", "o sport"]


async def test_number_of_a_channel_is_the_sum_over_the_nodes_and_every_node_is_told(make: Make) -> None:
    timings = replace(QUICK, ttl_s=60.0)
    one, other = make("n1", timings, wanted=NUMBERS), make("n2", timings, wanted=NUMBERS)
    await take(other)
    assert (await take(one, "#2 news")).numbers == (("news", 2),)
    assert (await take(other, "#3 news", "#1 sport")).numbers == (("news", 5), ("sport", 1))
    assert (await take(other)).numbers == ()
    assert (await take(one, "#0 news")).numbers == (("sport", 1), ("news", 3))
    assert (await take(one, "#0 news")).numbers == (), "it had none there"
    assert (await take(other, "#0 news", "#0 sport")).numbers == (("news", 0), ("sport", 0))
    expected = ["#2 news", "#5 news", "#1 sport", "#3 news", "#0 news", "#0 sport"]
    assert await queued(one) == expected


async def test_number_that_did_not_change_is_told_to_clients_that_are_new_and_is_no_event(make: Make) -> None:
    log = make("n1", wanted=NUMBERS)
    await take(log, "#2 news")
    assert (await take(log, "#2 news")).numbers == (("news", 2),)
    assert await queued(log) == ["#2 news"]


async def test_numbers_make_events_only_if_an_app_wants_them_and_none_are_counted_without_the_option(
    make: Make,
) -> None:
    told, none = make("n1", wanted=("=n",)), make("n2")
    assert (await take(told, "#2 news")).numbers == (("news", 2),)
    assert (await take(none)).numbers == ()
    assert await queued(told) == []


async def test_numbers_are_merged_and_the_last_one_comes(make: Make) -> None:
    slow = replace(QUICK, number_every_s=2.0, many_every_s=5.0)
    log = make("n1", slow, wanted=NUMBERS)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert (await take(log, "#1 news", "#1 sport")).numbers == (("news", 1), ("sport", 1))
    for count in (2, 3, 101):
        assert (await take(log, f"#{count} news")).numbers == ()
    told_s = await until_told(log, ("news", 101))
    assert loop.time() - began_s >= 2.0
    assert (await take(log, "#5 news", "#2 sport", "#4 sport")).numbers == (("sport", 4),)
    await until_told(log, ("news", 5))
    assert loop.time() - told_s >= 5.0, "above 100 it has longer pauses"
    assert await queued(log) == ["#1 news", "#1 sport", "#101 news", "#4 sport", "#5 news"]


async def test_client_that_comes_and_goes_makes_no_more_numbers_than_one_that_stays(make: Make) -> None:
    log = make("n1", replace(QUICK, number_every_s=60.0), wanted=NUMBERS)
    for _ in range(3):
        await take(log, "#1 news")
        await take(log, "#0 news")
    assert await queued(log) == ["#1 news"]


async def test_channel_without_subscribers_leaves_nothing_in_redis(make: Make) -> None:
    log = make("n1", wanted=NUMBERS)
    await take(log, "#1 news")
    await take(log, "#0 news")

    async def is_empty() -> bool:
        await take(log)
        parts = ("told", "changed", "due", "counts", f"facts:{log._owner}")
        found = await log._scripts.run(*(command(b"EXISTS", webhooks_key("test", "shop", part)) for part in parts))
        return found == [0] * len(parts)

    await eventually(is_empty, within_s=WITHIN_S, what="no channel is left")


async def test_numbers_of_a_dead_node_leave_the_sum(make: Make) -> None:
    one, other = make("n1", wanted=NUMBERS), make("n2", wanted=NUMBERS)
    await take(one, "#2 news", "#4 mine", "+o mine")
    assert (await take(other, "#1 news")).numbers == (("news", 3),)
    await until_told(other, ("mine", 0), ("news", 1))
    assert (await one.exchange([b"#7 news"])).status == "fenced"
    assert ("news", 3) in (await take(one, "#2 news")).numbers
    assert await queued(other) == ["#4 mine", "#2 news", "#3 news", "#0 mine", "#1 news", "#3 news"]


async def test_repeated_number_is_counted_once(make: Make) -> None:
    log = make("n1", wanted=NUMBERS)
    await take(log, "#2 news")
    log._number -= 1  # as if the answer had been lost
    assert (await take(log, "#2 news")).numbers == (("news", 2),)


async def test_after_a_loss_numbers_are_told_only_when_all_nodes_have_had_time_to_report_theirs(make: Make) -> None:
    patient = replace(QUICK, ttl_s=8.0, numbers_after_s=3.0)
    one, other = make("n1", patient, wanted=NUMBERS), make("n2", patient, wanted=NUMBERS)
    await take(one, "#2 news")
    await take(other, "#1 news")
    await until_told(one, ("news", 3))
    parts = ("owners", "state", "counts", "queue", "told", "changed", "due", f"facts:{one._owner}")
    keys = [*parts, f"facts:{other._owner}"]
    await one._scripts.run(*(command(b"DEL", webhooks_key("test", "shop", part)) for part in keys))
    for log, count in ((one, 2), (other, 1)):
        assert (await log.exchange([b"#9 news"])).status == "lost"
        assert await log.held() == []
        assert (await log.exchange([], is_reset=True)).status == "ok"
        assert (await take(log, f"#{count} news")).numbers == ()
    assert await one.held() == ["n news"]
    await until_told(one, ("news", 3))
    await until_told(other, ("news", 3))


async def test_many_numbers_come_in_pages_and_none_is_left_out(make: Make) -> None:
    timings = replace(QUICK, ttl_s=60.0)
    one, other = make("n1", timings, wanted=NUMBERS), make("n2", timings, wanted=NUMBERS)
    await take(other)
    names = [f"c{number}" for number in range(1_200)]
    for start in range(0, 1_200, 400):
        await take(one, *(f"#1 {name}" for name in names[start : start + 400]))
    found, has_more = list[tuple[str, int]](), True
    while has_more:
        page = await take(other)
        found, has_more = [*found, *page.numbers], page.has_more
    assert sorted(found) == sorted((name, 1) for name in names)


async def test_numbers_get_half_of_the_queue(make: Make) -> None:
    log = make("n1", wanted=NUMBERS, events_max=4)
    found = await take(log, "#1 a", "#1 b", "#1 c")
    assert (found.waiting, found.dropped, len(found.numbers)) == (2, 1, 3)
    assert await queued(log) == ["#1 a", "#1 b"]
