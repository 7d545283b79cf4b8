"""Suspected names over a Redis that the test answers: which notices and losses close a connection, in every order."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from snorky.gateway.contracts.directory import Owner
from snorky.gateway.redis.directory.holdings import LocalHoldings
from snorky.gateway.redis.directory.owned_index import OwnedName
from snorky.gateway.redis.directory.reconciler import Reconciler
from tests.support.fakes.fake_wire import until

NAMES = "messaging:names"
DESK = OwnedName(NAMES, "desk", 1)
SELF = Owner("a", "i", 1)
TWIN = Owner("b", "i", 2)


class Rig:
    """The reconciler of node a, whose connection 1 owns `desk`. The test answers each `find`."""

    def __init__(self) -> None:
        self.node_id, self.owner, self.is_held = "a", "a:i", True  # of the lease
        self.finds: list[asyncio.Future[Owner | None]] = []
        self.claimed: list[str] = []
        self.is_claimed = True
        self.lost: list[tuple[str, str, int]] = []
        self.holdings = LocalHoldings(echo_s=1.0)
        parts: Any = self  # as far as they are used
        self.reconciler = Reconciler(
            parts,
            prefix="test",
            lease=parts,
            local_holdings=self.holdings,
            owned_index=parts,
            rosters=parts,
            claims=parts,
            comparison=parts,
            contest_s=16.0,
        )
        self.reconciler.start(parts)

    async def found(self, count: int, owner: Owner | None) -> None:
        """Wait for this `find`, and answer it."""
        await self.asked(count)
        self.finds[count - 1].set_result(owner)

    async def asked(self, count: int) -> None:
        """Wait for this `find`."""
        await until(lambda: len(self.finds) >= count)

    async def settle(self) -> None:
        """Wait until no work is left."""
        await until(lambda: self.reconciler.is_idle and not self.reconciler.is_asserting)

    # -- of the lease's scripts, the index, the claims, the comparison and the local state ---------------------

    async def run(self, *steps: object) -> Sequence[Any]:
        return [1, *[int(self.is_claimed) for _ in steps[1:-1]], 0]

    def forget(self, owner: str, holdings: object) -> None: ...

    async def find(self, names: str, name: str) -> Owner | None:
        self.finds.append(asyncio.get_running_loop().create_future())
        return await self.finds[-1]

    def claiming(self, owner: str, held: OwnedName, identity: str | None, *, is_taking_over: bool) -> object:
        assert not is_taking_over
        self.claimed.append(held.name)
        return SimpleNamespace()

    async def runs(self) -> set[bytes]:
        return {b"run"}

    async def drop_strays(self, owner: str) -> int:
        return 0

    def local_members(self) -> list[Any]:
        return []

    def local_names(self) -> list[tuple[str, str, int, str | None]]:
        return [] if self.lost else [(NAMES, "desk", 1, "alice")]

    def on_lost_name(self, names: str, name: str, serial: int) -> None:
        self.lost.append((names, name, serial))


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    async with rig.holdings.locked(1) as holdings:
        holdings.all.add(DESK)
    yield rig
    await rig.reconciler.stop()


@pytest.mark.parametrize("now", [TWIN, Owner("c", "i", 3), None], ids=["the taker", "another identity", "nobody"])
async def test_a_connection_whose_name_was_taken_over_loses_it_whoever_has_it_by_then(
    rig: Rig, now: Owner | None
) -> None:
    """The taker may have released the name before this node handles the notice."""
    rig.reconciler.suspect([DESK], is_taken=True)
    await rig.found(1, now)
    await rig.settle()
    assert rig.lost == [(NAMES, "desk", 1)] and not rig.claimed
    assert not rig.holdings.holds(DESK)


@pytest.mark.parametrize("now", [TWIN, None], ids=["the taker", "nobody"])
async def test_a_name_that_was_taken_over_is_not_contested(rig: Rig, now: Owner | None) -> None:
    """Also shortly after Redis may have restored an older copy: no older copy sends notices."""
    rig.reconciler.on_searched()
    await rig.settle()
    rig.claimed.clear()
    rig.reconciler.suspect([DESK], is_taken=True)
    await rig.found(1, now)
    await rig.settle()
    assert rig.lost == [(NAMES, "desk", 1)] and not rig.claimed


async def test_a_notice_that_is_overtaken_by_a_new_claim_takes_nothing(rig: Rig) -> None:
    rig.reconciler.suspect([DESK], is_taken=True)
    await rig.found(1, SELF)
    await rig.settle()
    assert not rig.lost and rig.holdings.holds(DESK)


@pytest.mark.parametrize("first", [True, False], ids=["an older notice", "an interruption"])
async def test_a_notice_that_arrives_during_the_check_of_an_earlier_one_is_checked_too(rig: Rig, first: bool) -> None:
    rig.reconciler.suspect([DESK], is_taken=first)
    await rig.asked(1)
    rig.reconciler.suspect([DESK], is_taken=True)  # Redis took the name away after it had answered the first check
    await rig.found(1, SELF)
    await rig.found(2, None)
    await rig.settle()
    assert rig.lost == [(NAMES, "desk", 1)]


async def test_an_interruption_after_a_notice_does_not_replace_the_notice(rig: Rig) -> None:
    rig.reconciler.suspect([DESK], is_taken=True)
    rig.reconciler.suspect([DESK])
    await rig.found(1, None)
    await rig.settle()
    assert rig.lost == [(NAMES, "desk", 1)]


@pytest.mark.parametrize("is_free", [True, False], ids=["free", "claimed meanwhile"])
async def test_a_name_that_redis_has_lost_is_claimed_again_after_an_interruption(rig: Rig, is_free: bool) -> None:
    """Nobody is known to have taken it; but what Redis does not have, any client could claim."""
    rig.is_claimed = is_free
    rig.reconciler.suspect([DESK])
    await rig.found(1, None)
    await until(lambda: rig.claimed)
    await rig.settle()
    assert rig.claimed == ["desk"]
    assert rig.lost == ([] if is_free else [(NAMES, "desk", 1)])


async def test_a_claim_under_way_decides_before_the_check(rig: Rig) -> None:
    """The notice arrives before the reply to the claim that it is about."""
    async with rig.holdings.locked(1) as holdings:
        holdings.all.discard(DESK)
        rig.reconciler.suspect([DESK], is_taken=True)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not rig.finds, "it waits for the reply"
        holdings.all.add(DESK)
    await rig.found(1, None)
    await rig.settle()
    assert rig.lost == [(NAMES, "desk", 1)]
