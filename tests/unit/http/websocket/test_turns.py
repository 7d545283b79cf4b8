"""Turns: each client gets a share, others run in between, and an error of one affects no other."""

import asyncio
from time import perf_counter

from snorky.gateway.http.websocket.turns import SHARE_S, TURN_S, Turns
from snorky.gateway.metrics import Metrics
from tests.support.scenarios.site import until


class Greedy:
    """Has that many messages, and uses its turns fully. notes: order of turns."""

    def __init__(self, name: str, notes: list[str], turns: int) -> None:
        self.name, self.notes, self.turns = name, notes, turns
        self.is_aborted = False

    def take_turn(self, until_s: float) -> bool:
        self.notes.append(self.name)
        if self.turns == 0:
            raise RuntimeError("a fault of ours")
        while perf_counter() < until_s:
            pass
        self.turns -= 1
        return self.turns > 0

    def abort(self) -> None:
        self.is_aborted = True


def new_turns() -> Turns:
    return Turns(Metrics().queued_clients)


async def test_waiting_clients_have_turns_in_order() -> None:
    notes: list[str] = []
    turns = new_turns()
    for name in "abc":
        turns.join(Greedy(name, notes, 40))
    in_one_share = 0
    while len(notes) < 120:
        before = len(notes)
        await asyncio.sleep(0)
        in_one_share = max(in_one_share, len(notes) - before)
    assert "".join(notes) == "abc" * 40
    assert in_one_share >= 2  # a turn is shorter than a share


async def test_other_tasks_run_between_shares() -> None:
    notes: list[str] = []
    turns = new_turns()
    for _ in range(4):
        turns.join(Greedy("x", notes, 25))
    seen = []
    while len(notes) < 100:
        seen.append(len(notes))
        await asyncio.sleep(0)
    assert len(seen) >= 100 * TURN_S / SHARE_S / 2  # many times, however slow the machine is meanwhile


async def test_a_turn_that_fails_ends_its_client_alone() -> None:
    notes: list[str] = []
    metrics = Metrics()
    turns = Turns(metrics.queued_clients)
    broken, good = Greedy("b", notes, 0), Greedy("g", notes, 3)
    turns.join(broken)
    turns.join(good)
    assert metrics.registry.get_sample_value("snorky_queued_clients") == 2
    await until(lambda: good.turns == 0)
    assert metrics.registry.get_sample_value("snorky_queued_clients") == 0
    assert broken.is_aborted and not good.is_aborted
    later = Greedy("l", notes, 1)
    turns.join(later)
    await until(lambda: later.turns == 0)
    assert "".join(notes) == "bgggl"
