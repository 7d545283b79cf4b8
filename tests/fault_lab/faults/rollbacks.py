"""Redis rolls back: it dies and restarts from a copy that lacks acknowledged writes.

Some clients left before the copy was made, some after: none of them may get `recovered: true`. Some residents joined
after the copy was made, some left after it.
"""

import shutil
import time
from collections.abc import Awaitable, Callable
from functools import partial

from tests.fault_lab.checker import count_resyncs
from tests.fault_lab.client import LabClient
from tests.fault_lab.lab import Lab
from tests.fault_lab.trial import Fault, Trial
from tests.fault_lab.visitors import Visitors, members_and_names, pick, until_all_present
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import RedisServer

__all__ = ["ROLLBACK_FAULTS", "absent", "tell_resyncs"]

LOST = 25  # numbers of each channel that the copy lacks
BEYOND = 5
REBUILT_WITHIN_S = 10.0
HEALED_WITHIN_S = 10.0

Step = Callable[[Trial], Awaitable[None]]


async def go_back(trial: Trial, *, copy: Step, begin_again: Step) -> None:
    """Some residents leave and join, with the copy made in between; then Redis restarts from the copy."""
    lab = trial.lab
    before, since = absent(lab)
    goes = await Visitors.on(lab, pick(lab))
    trial.expected_lefts.update(goes.identities)
    comes: Visitors | None = None
    try:
        async with lab.crowd.away(*before):
            await lab.more(BEYOND)
            await copy(trial)
            comes = await Visitors.on(lab, pick(lab))
            trial.expected_lefts.update(comes.identities)  # at the end
            await goes.dismiss()
            await goes.until("left", 1, within_s=10)
            await lab.more(LOST)
            async with lab.crowd.away(*since):
                await lab.more(BEYOND)
                await begin_again(trial)
                trial.ended()
                await eventually(lab.are_ready, within_s=HEALED_WITHIN_S, what="all nodes are ready")
                await lab.more(BEYOND)
        await lab.whole(within_s=15)
        await until_all_present(lab, REBUILT_WITHIN_S + 10, others=comes.identities)
        await _until_gone(trial, goes)
        trial.expect_within(time.monotonic() - trial.ended_s, REBUILT_WITHIN_S, "rosters and names are correct")
        trial.expect(not any(comes.seen("left")), "a visitor that joined after the copy was reported as left")
        trial.expect(
            goes.is_exactly("left", 1), f"not exactly one `left` for each visitor that left: {goes.seen('left')}"
        )
        for each in (goes, comes):
            trial.expect(each.is_exactly("joined", 1), f"not exactly one `joined` each: {each.seen('joined')}")
        tell_resyncs(trial)
    finally:
        if comes is not None:
            await comes.dismiss()


def absent(lab: Lab) -> tuple[list[LabClient], list[LabClient]]:
    """Choose clients to disconnect, some for longer. No residents: these observe who leaves."""
    chosen = [member for member in lab.crowd.members if member.identity is None]
    return chosen[::4], chosen[1::4]


def tell_resyncs(trial: Trial) -> None:
    """Record what it costs."""
    resyncs = [count_resyncs(journal) for journal in trial.lab.crowd.journals]
    trial.figure(f"{sum(resyncs)} resyncs of {len(resyncs)} subscriptions, {max(resyncs)} of one at most")


async def _until_gone(trial: Trial, goes: Visitors) -> None:
    """Wait until no visitor that left after the copy remains in a room or keeps a name."""

    async def are_gone() -> bool:
        members, names = await members_and_names(trial.lab)
        return not goes.identities & (set(members) | set(names))

    await eventually(are_gone, within_s=REBUILT_WITHIN_S, what="no stale members or names")


def _redis(trial: Trial) -> RedisServer:
    assert trial.lab.redis is not None
    return trial.lab.redis


async def save(trial: Trial) -> None:
    """SAVE: the server loads it at every start, whatever else its configuration says."""
    async with _redis(trial).client() as client:
        await client.save()


async def start_from_snapshot(trial: Trial) -> None:
    """SIGKILL, and a start from the snapshot; then delete the snapshot."""
    await _redis(trial).restart()
    _redis(trial).dump.unlink()


class TruncatedLog:
    """An append-only file that ends in the middle of a command, as after a crash of the machine."""

    def __init__(self) -> None:
        self._size = 0

    async def begin(self, trial: Trial) -> None:
        """Log from now on, and record the log's size."""
        async with _redis(trial).client() as client:
            await client.config_set("appendonly", "yes")

            async def is_on() -> bool:
                info = await client.info("persistence")
                return not info["aof_rewrite_in_progress"] and not info.get("aof_rewrite_scheduled")

            await eventually(is_on, within_s=10, what="the append-only file has started")
            await client.config_rewrite()
        (log,) = (trial.lab.directory / "appendonlydir").glob("*.incr.aof")
        self._size = log.stat().st_size

    async def start_truncated(self, trial: Trial) -> None:
        """SIGKILL, truncate the log, start from it; then delete it."""
        server, folder = _redis(trial), trial.lab.directory / "appendonlydir"
        await server.stop()
        (log,) = folder.glob("*.incr.aof")
        size = log.stat().st_size
        with log.open("r+b") as file:
            file.truncate(self._size + 7)  # in the middle of a command
        trial.figure(f"{size - self._size - 7} bytes of the log cut")
        await server.start()
        async with server.client() as client:
            await client.config_set("appendonly", "no")
            await client.config_rewrite()
        shutil.rmtree(folder)


_log = TruncatedLog()


def _fault(key: str, name: str, copy: Step, begin_again: Step, *, is_in_ci: bool = True) -> Fault:
    return Fault(
        key=key,
        name=name,
        users_see="reported resyncs",
        inject=partial(go_back, copy=copy, begin_again=begin_again),
        healed_within_s=HEALED_WITHIN_S,
        disconnects=True,  # the clients that were away
        resyncs_max=4,  # another epoch, a suspected older library, and clients that reconnect meanwhile
        allows_repeats=True,  # the copy lacks idempotency keys too
        may_vanish=True,
        needs_history=True,
        is_in_ci=is_in_ci,
    )


ROLLBACK_FAULTS = (
    _fault("snapshot", "Redis killed, restarted from an older snapshot", save, start_from_snapshot),
    _fault("log", "Redis killed, its log truncated", _log.begin, _log.start_truncated, is_in_ci=False),
)
