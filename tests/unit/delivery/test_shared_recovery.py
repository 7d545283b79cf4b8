"""Clients that recover from one position share the read of its history, also for a while after it; with bounds."""

import asyncio

import pytest

from snorky.gateway.connection.pace import PORTION
from tests.support.fakes.fake_wire import settle
from tests.support.scenarios.history_stage import KEY, Stage, heard, payloads


async def test_clients_that_come_after_a_read_share_it_for_a_while(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a node dies, its clients come within seconds: those of one channel had a read each."""
    monkeypatch.setattr("snorky.gateway.delivery.gap_repair.KEEP_S", 3.0)
    reads: list[None] = []
    stage.town.archive.before_read = lambda: reads.append(None)
    await stage.plain(0)
    since = await stage.publish(0)
    await stage.publish(1)
    back = []
    for number in range(2, 12):
        back.append((number, await stage.back(0, since)))
        await stage.publish(number)
        await settle()
    assert len(reads) == 1
    for number, (client, recovery) in back:
        assert [*map(int, payloads(recovery))] == list(range(1, number))
        assert heard(client) == list(range(number, 12))
    await asyncio.sleep(3.2)
    _, recovery = await stage.back(0, since)
    assert len(reads) == 2 and len(recovery.publications) == 11


async def test_clients_that_recover_continue_in_portions(stage: Stage) -> None:
    """All that have waited for a read wake in one iteration of the loop."""
    await stage.plain(0)
    since = await stage.publish(0)
    await stage.publish(1)
    stage.town.archive.lateness = lambda: 20
    reads_now: list[int] = []
    interleaved = stage.town.nodes[0].interleaved_reads
    interleaved._read_now = lambda: reads_now.append(done)
    done = 0

    async def back() -> None:
        nonlocal done
        _, recovery = await stage.back(0, since)
        assert payloads(recovery) == [b"1"]
        done += 1

    tasks = [asyncio.ensure_future(back()) for _ in range(6 * PORTION)]
    most = 0
    while done < len(tasks):
        before = done
        interleaved._due_s = 0.0
        await asyncio.sleep(0)
        most = max(most, done - before)
    assert most <= PORTION + 1, "and the one that has begun the read"
    assert len(set(reads_now)) > 3, "publications are read between the portions"
    await asyncio.gather(*tasks)


async def test_a_read_that_was_kept_gives_no_client_more_than_the_limit(stage: Stage) -> None:
    await stage.plain(0)
    since = await stage.publish(0)
    await stage.publish(*range(200))
    _, recovery = await stage.back(0, since)
    assert len(recovery.publications) == 200
    await stage.publish(*range(200))
    await settle()
    _, recovery = await stage.back(0, since)
    assert (recovery.is_recovered, recovery.publications) == (False, [])


async def test_clients_with_too_much_to_recover_share_the_next_read_too(stage: Stage) -> None:
    """Each removed the read that the one before it had begun: 1,000 clients read 1,000 times."""
    await stage.plain(0)
    since = await stage.publish(0)
    await stage.publish(*range(298))
    reads: list[None] = []
    stage.town.archive.before_read = lambda: reads.append(None)
    stage.town.archive.lateness = lambda: 20
    coming = [asyncio.ensure_future(stage.back(0, since)) for _ in range(30)]
    await settle(5)
    for number in range(5):
        await stage.publish(number)
    for _, recovery in await asyncio.gather(*coming):
        assert not recovery.is_recovered
    assert len(reads) <= 4


async def test_publications_that_are_kept_for_clients_have_a_bound_in_bytes(stage: Stage) -> None:
    await stage.plain(0)
    since = await stage.publish(0)
    for number in range(20):
        await stage.publish(f"{number}".ljust(100_000))
        await stage.back(0, since)
        await settle()
    order = stage.town.nodes[0]._repair._followed[KEY].order  # type: ignore[union-attr]
    assert 0 < sum(each.size for each in order._recent or ()) <= 1 << 20


async def test_after_an_interruption_no_earlier_read_is_shared(stage: Stage) -> None:
    await stage.plain(0)
    since = await stage.publish(0)
    await stage.publish(1)
    reads: list[None] = []
    await stage.back(0, since)
    stage.town.archive.before_read = lambda: reads.append(None)
    await stage.back(0, since)
    assert reads == []
    stage.town.nodes[0].on_interrupted()
    await stage.back(0, since)
    assert len(reads) >= 1


async def test_reads_that_are_kept_have_a_bound_in_bytes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snorky.gateway.delivery.gap_repair.KEEP_S", 30.0)
    monkeypatch.setattr("snorky.gateway.delivery.gap_repair.KEPT_MAX_BYTES", 3_000)
    reads: list[None] = []
    stage.town.archive.before_read = lambda: reads.append(None)
    for channel, expected in (("c", 1), ("d", 3)):
        since = await stage.publish(0, channel=channel)
        await stage.publish("x" * 2_000, channel=channel)
        reads.clear()
        for _ in range(3):
            await stage.back(0, since, channel)
            await settle()
        assert len(reads) == expected


async def test_a_read_that_was_kept_is_not_used_when_the_channel_was_dropped(stage: Stage) -> None:
    """Meanwhile the node receives nothing."""
    since = await stage.publish(0)
    await stage.publish(1)
    client, recovery = await stage.back(0, since)
    assert payloads(recovery) == [b"1"]
    client.leave()
    await settle()
    await stage.publish(2)
    _, recovery = await stage.back(0, since)
    assert payloads(recovery) == [b"1", b"2"]
