"""Suspected names over a Redis that the test answers: which notices and losses close a connection, in every order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from snorky.gateway.contracts.directory import Owner
from snorky.gateway.redis.directory.holdings import LocalHoldings
from snorky.gateway.redis.directory.owned_index import OwnedItem, OwnedName
from snorky.gateway.redis.directory.reconciler import Reconciler
from tests.support.fakes.fake_wire import until

NAMES = "messaging:names"
DESK = OwnedName(NAMES, "desk", 1)
CHAIR = OwnedName(NAMES, "chair", 1)
SELF = Owner("a", "i", 1)
TWIN = Owner("b", "i", 2)


class Rig:
    """The reconciler of node a, whose connection 1 owns `desk`. The test answers each `find`, and each gated step."""

    def __init__(self, *, compare_every_s: float = 3600.0) -> None:
        self.node_id, self.owner, self.is_held = "a", "a:i", True  # of the lease
        self.finds: list[asyncio.Future[Owner | None]] = []
        self.claimed: list[str] = []
        self.is_claimed = True
        self.released: list[OwnedItem] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.waiting: set[str] = set()  # at a gate
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
            compare_every_s=compare_every_s,
        )
        self.reconciler.start(parts)

    async def found(self, count: int, owner: Owner | None) -> None:
        """Wait for this `find`, and answer it."""
        await self.asked(count)
        self.finds[count - 1].set_result(owner)

    async def asked(self, count: int) -> None:
        """Wait for this `find`."""
        await until(lambda: len(self.finds) >= count)

    def redis_says(self) -> Owner | None:
        """Return the owner of `desk`, which was free until this node claimed it again."""
        return SELF if "desk" in self.claimed else None

    async def passed(self, gate: str) -> None:
        """A step that the test may delay."""
        if event := self.gates.get(gate):
            self.waiting.add(gate)
            await event.wait()

    async def settle(self) -> None:
        """Wait until no work is left."""
        await until(lambda: self.reconciler.is_idle and not self.reconciler.is_asserting)

    # -- of the lease's scripts, the index, the claims, the comparison and the local state ---------------------

    async def run(self, *steps: object) -> Sequence[Any]:
        return [1, *[int(self.is_claimed) for _ in steps[1:-1]], 0]

    def forget(self, owner: str, holdings: object) -> None: ...

    async def sweep(self, owner: str) -> int:
        return 0

    async def give_back(self, owner: str, holdings: Sequence[OwnedItem]) -> list[bool]:
        self.released += holdings
        return [True for _ in holdings]

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
        await self.passed("drop_strays")
        return 0

    async def look(self, owner: str, holdings: Sequence[OwnedItem]) -> tuple[set[OwnedItem], set[OwnedName]]:
        await self.passed("look")
        return set(holdings), set()

    def count(self, kind: str, number: int) -> None: ...

    def local_members(self) -> list[Any]:
        return []

    def local_names(self) -> list[tuple[str, str, int, str | None]]:
        return [(each.names, each.name, each.serial, "alice") for each in self.holdings.names()]

    def on_lost_name(self, names: str, name: str, serial: int) -> None:
        self.lost.append((names, name, serial))


@asynccontextmanager
async def started(rig: Rig, *names: OwnedName) -> AsyncIterator[Rig]:
    async with rig.holdings.locked(1) as holdings:
        holdings.all.update(names)
    try:
        yield rig
    finally:
        await rig.reconciler.stop()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with started(Rig(), DESK) as rig:
        yield rig


REASONS: dict[str, Callable[[Reconciler], None]] = {
    "a new connection": lambda reconciler: reconciler.on_lost_state(),
    "a fence": lambda reconciler: reconciler.on_fenced("a:i0"),
    "a search": lambda reconciler: reconciler.on_searched(),
}
to_register_again = pytest.mark.parametrize("reason", REASONS)


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


# -- registering again while a notice is pending ---------------------------------------------------------------------


@to_register_again
async def test_a_name_with_a_pending_notice_is_not_registered_again(rig: Rig, reason: str) -> None:
    """Otherwise the check would find the node's own registration. Also if Redis lost its state after the notice."""
    rig.reconciler.suspect([DESK], is_taken=True)
    REASONS[reason](rig.reconciler)
    await rig.asked(1)
    await rig.found(1, rig.redis_says())
    await rig.settle()
    assert rig.lost == [(NAMES, "desk", 1)] and not rig.claimed


@pytest.mark.parametrize("now", [TWIN, None], ids=["the taker", "nobody"])
@to_register_again
async def test_a_notice_counts_although_all_will_be_registered_again(rig: Rig, reason: str, now: Owner | None) -> None:
    """Whatever copy the answer came from. If the other copy has the name for this connection, it is released there."""
    rig.reconciler.suspect([DESK], is_taken=True)
    await rig.asked(1)
    REASONS[reason](rig.reconciler)
    await rig.found(1, now)
    rig.reconciler.on_renewed()
    await until(lambda: rig.lost or len(rig.finds) > 1)
    assert rig.lost == [(NAMES, "desk", 1)] and len(rig.finds) == 1
    await until(lambda: rig.released)
    assert rig.released == [DESK] and not rig.claimed


async def test_a_free_name_does_not_register_a_taken_one_again() -> None:
    """One check finds a name that Redis lost, and behind it one that was taken over."""
    async with started(Rig(), DESK, CHAIR) as rig:
        rig.reconciler.suspect([CHAIR])
        rig.reconciler.suspect([DESK], is_taken=True)
        await rig.found(1, None)
        await rig.asked(2)
        await rig.found(2, rig.redis_says())
        await until(lambda: rig.lost or len(rig.finds) > 2)
        assert rig.lost == [(NAMES, "desk", 1)]
        await until(lambda: rig.claimed)
        assert rig.claimed == ["chair"]


async def test_a_contested_name_with_a_pending_notice_is_not_claimed_again(rig: Rig) -> None:
    rig.is_claimed = False
    rig.reconciler.on_searched()
    await until(lambda: rig.claimed)
    rig.is_claimed = True
    rig.claimed.clear()
    rig.reconciler.suspect([DESK], is_taken=True)
    await rig.found(1, rig.redis_says())
    await rig.settle()
    assert rig.lost == [(NAMES, "desk", 1)] and not rig.claimed


@pytest.mark.parametrize("step", ["drop_strays", "look"])
async def test_a_notice_during_the_comparison_with_redis_counts(step: str) -> None:
    rig = Rig(compare_every_s=0.001)
    gate = rig.gates[step] = asyncio.Event()
    async with started(rig, DESK):
        await until(lambda: step in rig.waiting)
        rig.reconciler.suspect([DESK], is_taken=True)
        gate.set()
        await rig.asked(1)
        await rig.found(1, rig.redis_says())
        await until(lambda: rig.lost or rig.claimed)
        assert rig.lost == [(NAMES, "desk", 1)] and not rig.claimed


@to_register_again
async def test_a_name_that_was_claimed_again_after_its_notice_is_registered_after_the_check(
    rig: Rig, reason: str
) -> None:
    """Under the new incarnation, and in its index."""
    rig.reconciler.suspect([DESK], is_taken=True)
    REASONS[reason](rig.reconciler)
    await rig.asked(1)
    assert not rig.claimed
    await rig.found(1, SELF)
    await rig.settle()
    assert rig.claimed == ["desk"] and not rig.lost and rig.holdings.holds(DESK)


@pytest.mark.parametrize("now", [SELF, None], ids=["claimed again", "of an older copy"])
async def test_a_notice_is_checked_again_if_the_answer_may_be_of_an_older_copy(rig: Rig, now: Owner | None) -> None:
    rig.reconciler.suspect([DESK], is_taken=True)
    await rig.asked(1)
    rig.reconciler.on_lost_state()
    await rig.found(1, SELF)  # older than the notice, or newer
    await rig.found(2, now)
    await rig.settle()
    assert rig.claimed == (["desk"] if now else [])
    assert rig.lost == ([] if now else [(NAMES, "desk", 1)])
