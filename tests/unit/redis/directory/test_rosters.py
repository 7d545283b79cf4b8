"""Lists of rosters over scripts that the test answers: which calls share a list."""

import asyncio
from typing import Any

import pytest

from snorky.gateway.contracts.directory import Member, Owner, RosterSnapshot
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.directory.rosters import SLICE, TRIES, Rosters


class ScriptedScripts:
    """The test answers every run."""

    def __init__(self) -> None:
        self.runs: list[asyncio.Future[list[Any]]] = []

    async def run(self, *steps: object) -> list[Any]:
        self.runs.append(asyncio.get_running_loop().create_future())
        return await self.runs[-1]


def rosters(scripts: ScriptedScripts) -> Rosters:
    return Rosters(scripts, prefix="test", notices=lambda *_, **__: None)  # type: ignore[arg-type]  # as far as used


def flat(*serials: int) -> list[bytes]:
    return [word for serial in serials for word in (b"a:i:%d " % serial, b"3:bobnull")]


def listed(*serials: int) -> list[list[object]]:
    return [[b"1", b"1", b"", flat(*serials), b"run"]]


def member(serial: int) -> Member:
    return Member("bob", Owner("a", "i", serial))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_calls_during_a_running_list_share_the_next_list() -> None:
    scripts = ScriptedScripts()
    asked = rosters(scripts)
    first = asyncio.ensure_future(asked.members("chat:x"))
    await settle()
    later = [asyncio.ensure_future(asked.members("chat:x")) for _ in range(3)]
    await settle()
    assert len(scripts.runs) == 1
    scripts.runs[0].set_result(listed(1))
    await settle()
    assert len(scripts.runs) == 2 and await first == [member(1)]
    scripts.runs[1].set_result(listed(10, 9))
    assert await asyncio.gather(*later) == [[member(9), member(10)]] * 3
    (await later[0]).clear()
    assert await later[1], "each has a list of its own"


async def test_rosters_do_not_wait_for_each_other() -> None:
    scripts = ScriptedScripts()
    asked = rosters(scripts)
    tasks = [asyncio.ensure_future(asked.members(f"chat:{name}")) for name in "xyz"]
    await settle()
    assert len(scripts.runs) == 3
    for run in scripts.runs:
        run.set_result(listed())
    assert await asyncio.gather(*tasks) == [[], [], []]


async def test_a_failed_list_fails_for_its_callers_and_the_next_one_is_requested() -> None:
    scripts = ScriptedScripts()
    asked = rosters(scripts)
    first = asyncio.ensure_future(asked.members("chat:x"))
    await settle()
    second = asyncio.ensure_future(asked.members("chat:x"))
    scripts.runs[0].set_exception(BrokerUnavailable("gone"))
    with pytest.raises(BrokerUnavailable):
        await first
    await settle()
    scripts.runs[1].set_result(listed(1))
    assert await second == [member(1)]


async def test_a_cancelled_caller_leaves_the_list_to_the_others() -> None:
    scripts = ScriptedScripts()
    asked = rosters(scripts)
    first = asyncio.ensure_future(asked.members("chat:x"))
    await settle()
    second = asyncio.ensure_future(asked.members("chat:x"))
    await settle()
    first.cancel()
    await settle()
    scripts.runs[0].set_result(listed())
    await settle()
    scripts.runs[1].set_result(listed(1))
    assert await second == [member(1)]


async def test_foreign_entries_are_omitted_and_data_is_not_shared() -> None:
    scripts = ScriptedScripts()
    asked = rosters(scripts)
    found = [b"a:i:1 ", b"3:bob[1]", b"nonsense", b"x", b"a:i:2 ", b"9:bob{", b"a:i:3 ", b"3:bobnull"]
    lists = []
    for number in range(2):
        task = asyncio.ensure_future(asked.members("chat:x"))
        await settle()
        scripts.runs[number].set_result([[b"1", b"1", b"", list(found), b"run"]])
        lists.append(await task)
    assert lists[0] == [Member("bob", Owner("a", "i", 1), "", [1]), member(3)]
    lists[0][0].data.append(2)
    assert lists[1][0].data == [1]


async def test_stopping_ends_running_calls() -> None:
    scripts = ScriptedScripts()
    asked = rosters(scripts)
    tasks = [asyncio.ensure_future(asked.members("chat:x"))]
    await settle()
    tasks.append(asyncio.ensure_future(asked.members("chat:x")))
    await settle()
    await asked.stop()
    assert all(
        isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*tasks, return_exceptions=True)
    )


# -- large ones, in pages ------------------------------------------------------------------------------------------


class Answering:
    """Answers runs in order, and records the calls."""

    def __init__(self, *answers: object) -> None:
        self.asked: list[Any] = []
        self._answers = list(answers)

    async def run(self, *steps: object) -> list[Any]:
        self.asked += steps
        return [self._answers.pop(0)]


async def test_a_large_roster_is_read_in_pages_and_belongs_to_its_version() -> None:
    pages = [[b"7", flat(1, 2)], [b"0", flat(2, 3)]]  # an entry may come twice
    scripts = Answering([b"5", b"5", b"9", 3, b"run"], *pages, [b"5", b"9"])
    census = await rosters(scripts).census("chat:x")  # type: ignore[arg-type]
    assert census == RosterSnapshot(5, [member(1), member(2), member(3)], "run")
    assert [step.count(b"HSCAN") for step in scripts.asked[1:3]] == [1, 1]


async def test_a_large_roster_that_changed_meanwhile_is_read_again() -> None:
    changed: list[object] = [
        [b"5", b"5", b"9", 3, b"run"],
        [b"0", flat(1)],
        [b"5", b"10"],
    ]  # one without a notice
    scripts = Answering(*changed, [b"6", b"6", b"10", 3, b"run"], [b"0", flat(1, 2)], [b"6", b"10"])
    census = await rosters(scripts).census("chat:x")  # type: ignore[arg-type]
    assert (census.version, census.members) == (6, [member(1), member(2)])


async def test_a_roster_that_keeps_changing_has_the_version_before_its_last_pages() -> None:
    rounds: list[object] = []
    for version in range(TRIES):
        rounds += [[b"%d" % version, b"", b"", 3, b"run"], [b"0", flat(version)], [b"x", b"y"]]
    census = await rosters(Answering(*rounds)).census("chat:x")  # type: ignore[arg-type]
    assert (census.version, census.members) == (TRIES - 1, [member(TRIES - 1)])


async def test_a_large_roster_is_decoded_in_many_steps_of_the_loop_and_sorted() -> None:
    scripts = ScriptedScripts()
    reading = asyncio.ensure_future(rosters(scripts).members("chat:x"))
    await settle()
    serials = list(range(4 * SLICE, 0, -1))
    scripts.runs[0].set_result(listed(*serials))
    steps = 0
    while not reading.done():
        await asyncio.sleep(0)
        steps += 1
    assert steps >= 2 * 4, "each slice is decoded in a step of its own, and then merged"
    assert await reading == [member(serial) for serial in sorted(serials)]
