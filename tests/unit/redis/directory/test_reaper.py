"""When a reaper looks at the leases by itself, and when it takes what came with a renewal; over scripted answers."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import hiredis
import pytest
from structlog.testing import capture_logs

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.scripts import Call
from snorky.gateway.redis.directory.lease import Timings
from snorky.gateway.redis.directory.reaper import Reaper

TIMINGS = Timings(renew_s=3600.0, look_s=0.01, sighting_s=0.05)
NOTHING: list[list[Any]] = [[], []]


class FakeLease:
    """A valid lease. The test renews it."""

    owner = "me:i"
    is_failing = False
    is_held = True

    def __init__(self) -> None:
        self.riders: list[Reaper] = []
        self.renewals = 1

    def renew(self, answer: object) -> None:
        self.renewals += 1
        for rider in self.riders:
            rider.on_ridden(rider.ride(), answer)


class FakeScripts:
    """Records the calls. found: the answer to each `look`."""

    def __init__(self, found: object = NOTHING) -> None:
        self.found = found
        self.fails = 0  # so many calls
        self.names: list[str] = []
        self.calls = asyncio.Condition()

    async def run(self, call: Call | bytes) -> list[Any]:
        async with self.calls:
            self.names.append(call.name if isinstance(call, Call) else "command")
            self.calls.notify_all()
        if self.fails:
            self.fails -= 1
            raise BrokerUnavailable("scripted")
        return [self.found if self.names[-1] == "look" else 1]

    async def until(self, name: str, count: int = 1) -> None:
        async with asyncio.timeout(30.0), self.calls:
            await self.calls.wait_for(lambda: self.names.count(name) >= count)


@asynccontextmanager
async def reaping(lease: FakeLease, scripts: FakeScripts, timings: Timings = TIMINGS) -> AsyncIterator[Reaper]:
    async def sweep(_: str) -> int:
        return 0

    reaper = Reaper(scripts, prefix="test", lease=lease, timings=timings, sweep=sweep)  # type: ignore[arg-type]
    reaper.start()
    try:
        yield reaper
    finally:
        await reaper.stop()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_while_no_lease_expires_the_renewals_bring_all_that_is_asked() -> None:
    lease, scripts = FakeLease(), FakeScripts()
    async with reaping(lease, scripts):
        for _ in range(3):
            lease.renew(NOTHING)
            await settle()
        assert not scripts.names


@pytest.mark.parametrize("answer", [[[b"b:1", -20], []], [[], [b"b:1", -20]]], ids=["lease", "sweep"])
async def test_the_reaper_looks_when_a_lease_ends_or_a_sweep_is_due(answer: object) -> None:
    lease, scripts = FakeLease(), FakeScripts()
    async with reaping(lease, scripts):
        lease.renew(answer)
        await scripts.until("look")


async def test_a_lease_that_stays_expired_is_seized_after_an_own_renewal_and_no_earlier() -> None:
    dead = [[b"b:1", 10], []]
    lease, scripts = FakeLease(), FakeScripts(dead)
    async with reaping(lease, scripts) as reaper:
        lease.renew(dead)
        await scripts.until("look", 10)
        (sighting,) = reaper._sightings.values()
        assert reaper._looked_at - sighting.at > TIMINGS.sighting_s and "seize" not in scripts.names
        lease.renew(dead)
        await scripts.until("seize")


async def test_a_sweep_that_is_due_is_seized_when_a_renewal_brings_it() -> None:
    lease, scripts = FakeLease(), FakeScripts()
    async with reaping(lease, scripts):
        lease.renew([[], [b"b:1", 0]])
        await scripts.until("seize")
        assert scripts.names[0] == "seize"


async def test_an_answer_does_not_get_younger_while_it_waits() -> None:
    """The reaper was busy meanwhile: the lease may have been renewed since."""
    dead = [[b"b:1", 10], []]
    lease, scripts = FakeLease(), FakeScripts()
    async with reaping(lease, scripts, replace(TIMINGS, sighting_s=1.0)) as reaper:
        lease.renew(dead)
        await reaper._look()
        for _ in range(2):
            time.sleep(0.3)  # noqa: ASYNC251 - the loop is blocked
            lease.renew(dead)
            await reaper._look()
        lease.renew(dead)
        time.sleep(0.6)  # noqa: ASYNC251 - as above
        await reaper._look()
        assert "seize" not in scripts.names


async def test_after_a_check_that_failed_the_reaper_looks_again_without_a_renewal() -> None:
    lease, scripts = FakeLease(), FakeScripts()
    async with reaping(lease, scripts):
        scripts.fails = 3
        lease.renew([[b"b:1", -20], []])
        await scripts.until("look", 4)


async def test_an_error_in_the_answer_to_a_renewal_is_logged_once_until_the_next_good_one() -> None:
    lease, scripts = FakeLease(), FakeScripts()
    with capture_logs() as logged:
        async with reaping(lease, scripts):
            for _ in range(2):
                lease.renew(hiredis.ReplyError("NOPERM"))
                lease.renew(hiredis.ReplyError("NOPERM"))
                lease.renew(NOTHING)
    assert [each["error"] for each in logged if each["event"] == "check for dead nodes failed"] == ["NOPERM"] * 2
