"""Redis answers but refuses writes for longer than a lease: no node is dead, and nodes report it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from tests.fault_lab.faults.servers import expect_refused_unsent
from tests.fault_lab.trial import Fault, Trial
from tests.fault_lab.visitors import Visitors, pick, until_all_present
from tests.support.processes.tools import eventually

__all__ = ["REFUSAL_FAULTS"]

REFUSED_S = 14.0  # leases last 8 s
UNREADY_WITHIN_S = 6.0
READY_WITHIN_S = 6.0
HEALED_WITHIN_S = 3.0


async def refuse(trial: Trial, *, refusing: Callable[[Trial], AbstractAsyncContextManager[None]]) -> None:
    """Make Redis refuse all writes for a while."""
    lab = trial.lab
    visitors = await Visitors.on(lab, pick(lab))
    trial.expected_lefts.update(visitors.identities)  # at the end
    fenced = _fenced(trial)
    try:
        async with refusing(trial):
            began_s = time.monotonic()
            await eventually(partial(_say_so, trial), within_s=UNREADY_WITHIN_S + 5, what="/readyz is 503")
            trial.expect_within(time.monotonic() - began_s, UNREADY_WITHIN_S, "/readyz 503")
            await asyncio.sleep(REFUSED_S - (time.monotonic() - began_s))  # the duration itself is the fault
            trial.expect(await _say_so(trial), "a node was ready while Redis refused")
        trial.ended()
        await eventually(lab.are_ready, within_s=READY_WITHIN_S + 5, what="all nodes are ready")
        trial.expect_within(time.monotonic() - trial.ended_s, READY_WITHIN_S, "/readyz 200")
        await until_all_present(lab, within_s=10, others=visitors.identities)
        await expect_refused_unsent(trial)
        trial.expect(not any(visitors.seen("left")), "a visitor was reported as left")
        trial.expect(_fenced(trial) == fenced, "a live node was fenced")
    finally:
        await visitors.dismiss()


async def _say_so(trial: Trial) -> bool:
    answers = await asyncio.gather(*(node.ask("/readyz") for node in trial.lab.nodes))
    reasons: list[list[str]] = [json.loads(body)["reasons"] for status, body in answers if status == 503]
    return len(reasons) == len(answers) and all("redis_refuses" in each for each in reasons)


def _fenced(trial: Trial) -> int:
    return sum(node.log.count("other nodes considered this node dead") for node in trial.lab.nodes)


@asynccontextmanager
async def without_replica(trial: Trial) -> AsyncIterator[None]:
    """NOREPLICAS: Redis has no replica and requires one."""
    assert trial.lab.redis is not None
    async with trial.lab.redis.client() as client:
        await client.config_set("min-replicas-to-write", 1)
        try:
            yield
        finally:
            await client.config_set("min-replicas-to-write", 0)


@asynccontextmanager
async def without_disk(trial: Trial) -> AsyncIterator[None]:
    """MISCONF: snapshots cannot be written."""
    assert trial.lab.redis is not None
    in_the_way = trial.lab.redis.dump
    in_the_way.mkdir()
    async with trial.lab.redis.client() as client:
        await client.config_set("save", "86400 1000000000")
        await client.bgsave()

        async def has_failed() -> bool:
            return bool((await client.info("persistence"))["rdb_last_bgsave_status"] != "ok")

        await eventually(has_failed, within_s=10, what="the snapshot has failed")
        try:
            yield
        finally:
            in_the_way.rmdir()
            await client.config_set("save", "")  # a server without snapshots does not refuse writes because of them


REFUSAL_FAULTS = (
    Fault(
        key="no-replicas",
        name=f"Redis refuses writes {REFUSED_S:g} s (NOREPLICAS)",
        users_see="publish refused, clear error",
        inject=partial(refuse, refusing=without_replica),
        healed_within_s=HEALED_WITHIN_S,
    ),
    Fault(
        key="no-disk",
        name=f"Redis refuses writes {REFUSED_S:g} s (MISCONF)",
        users_see="publish refused, clear error",
        inject=partial(refuse, refusing=without_disk),
        healed_within_s=HEALED_WITHIN_S,
        is_in_ci=False,  # the other row refuses the same commands
    ),
)
