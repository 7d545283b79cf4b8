"""Publications that were not stored in a history end the positions before them."""

import asyncio

import pytest
from structlog.testing import capture_logs

from snorky.gateway.testing.history import MemoryHistory
from tests.support.fakes.fake_wire import settle, until
from tests.support.scenarios.history_stage import KEY, Stage, heard, payloads

# -- publications without history ------------------------------------------------------------------------------------


async def test_publication_past_history_is_counted_and_logged_and_clients_that_were_away_get_a_gap(
    stage: Stage,
) -> None:
    follower = await stage.plain(0)
    before = await stage.publish(1)
    with capture_logs() as logs:
        stage.topics(1).publish("c", "bare")
        await until(lambda: heard(follower) == [1, "bare"])
        await until(lambda: KEY in stage.town.archive.lost)
    assert stage.sample(0, "snorky_unkept_publications_total") == 1
    assert [log["channel"] for log in logs if log["event"] == "publication not kept"] == [KEY]
    _, recovery = await stage.back(2, before)
    assert not recovery.is_recovered
    after = await stage.publish(2)
    await stage.publish(3)
    _, recovery = await stage.back(1, after)
    assert recovery.is_recovered and payloads(recovery) == [b"3"]
    await until(lambda: heard(follower) == [1, "bare", 2, 3])


async def test_publication_past_history_while_clients_recover_is_a_gap_for_all_of_them(stage: Stage) -> None:
    follower = await stage.plain(0)
    since = await stage.publish(1)
    stage.town.archive.lateness = lambda: 50
    first = asyncio.ensure_future(stage.back(0, since))  # has the channel, and gets nothing yet
    await settle(5)
    stage.topics(1).publish("c", "bare")
    await until(lambda: heard(follower) == [1, "bare"])
    second = asyncio.ensure_future(stage.back(0, since))  # the read of the first began before
    for client, recovery in await asyncio.gather(first, second):
        assert heard(client) == [] and not recovery.is_recovered
    stage.town.archive.lateness = lambda: 1
    after = await stage.publish(2)
    await until(lambda: heard(follower) == [1, "bare", 2])
    _, recovery = await stage.back(0, after)
    assert recovery.is_recovered


async def test_client_that_resumes_after_an_unstored_publication_shares_no_earlier_read(stage: Stage) -> None:
    follower = await stage.plain(0)
    since = await stage.publish(1)
    stage.town.archive.lateness = lambda: 300
    first = asyncio.ensure_future(stage.back(0, since))
    await settle(5)
    stage.topics(1).publish("c", "bare")
    await settle(50)
    assert heard(follower) == [1, "bare"] and KEY in stage.town.archive.lost, "it is noticed after the first read"
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
    follower = await stage.plain(0)
    since = await stage.publish(1)
    stage.topics(1).publish("c", "bare")
    await until(lambda: heard(follower) == [1, "bare"])
    _, recovery = await stage.back(0, since)
    assert not recovery.is_recovered
    noting.set()


async def test_publication_past_history_is_noted_once_redis_answers_again(stage: Stage) -> None:
    follower = await stage.plain(0)
    await stage.publish(1)
    stage.town.archive.is_failing = True
    stage.topics(1).publish("c", "bare")
    await until(lambda: heard(follower) == [1, "bare"])
    await settle()
    assert KEY not in stage.town.archive.lost
    stage.town.archive.is_failing = False
    await until(lambda: KEY in stage.town.archive.lost)
