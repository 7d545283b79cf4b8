"""The machine that a node runs on: its clock, its file descriptors."""

import asyncio
import itertools
import os
import resource
import time
from pathlib import Path

from tests.fault_lab.trial import Fault, Trial
from tests.fault_lab.visitors import pick
from tests.support.clients.raw_ws import RawClient
from tests.support.processes.nodes import NodeProcess
from tests.support.processes.tools import eventually

__all__ = ["MACHINE_FAULTS"]

SPARE_DESCRIPTORS = 10
KNOCKS = 60
HOUR_S = 3600
JUMPED_S = 4.0  # long enough for two checks for dead nodes
SPIN_S = 2.0
SPIN_CPU_MAX = 0.8  # of a core, in addition to the load


async def exhaust_descriptors(trial: Trial) -> None:
    """No file descriptors left: new connections are refused, existing ones are served, and no loop spins."""
    lab = trial.lab
    node = lab.nodes[pick(lab)]
    soft, hard = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (_limit_with_spare(node, SPARE_DESCRIPTORS), hard))
    knocking: list[RawClient] = []
    try:
        before_s = cpu_s(node)
        answers = await asyncio.gather(*(_knock(node, knocking) for _ in range(KNOCKS)))
        await asyncio.sleep(SPIN_S)
        busy = (cpu_s(node) - before_s) / SPIN_S
        trial.figure(f"{answers.count(True)} of {KNOCKS} new ones accepted, {busy:.0%} of a core meanwhile")
        trial.expect(not all(answers), "every new connection was accepted: the limit was not reached")
        trial.expect(busy <= SPIN_CPU_MAX, f"{busy:.0%} of a core: it spins")
    finally:
        for client in knocking:
            client.close()
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (soft, hard))
    trial.ended()
    again: list[RawClient] = []
    await eventually(lambda: _knock(node, again), within_s=10, what="new connections are accepted again")
    trial.expect_within(time.monotonic() - trial.ended_s, 5.0, "new ones accepted again after")
    for client in again:
        client.close()


def _limit_with_spare(node: NodeProcess, spare: int) -> int:
    """Return the limit below which this many descriptors are free: it bounds their numbers, and they have holes."""
    used = {int(name) for name in os.listdir(f"/proc/{node.pid}/fd")}
    free = (number for number in itertools.count() if number not in used)
    return next(itertools.islice(free, spare, None))


async def _knock(node: NodeProcess, opened: list[RawClient]) -> bool:
    """Try a handshake; True if it succeeded within a second."""
    try:
        async with asyncio.timeout(1):
            client = await RawClient.open("127.0.0.1", node.public_port)
            opened.append(client)
            return (await client.handshake()).status == 101
    except (TimeoutError, OSError, EOFError):
        return False


def cpu_s(node: NodeProcess) -> float:
    """Return the CPU seconds that a process has used."""
    with open(f"/proc/{node.pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def jump_node_clock(trial: Trial) -> None:
    """A node's wall clock is wrong by an hour, first ahead, then behind."""
    lab = trial.lab
    index = pick(lab)
    clock = lab.clocks[index]
    maps = await asyncio.to_thread(Path(f"/proc/{lab.nodes[index].pid}/maps").read_text)
    trial.expect("clock.so" in maps, "its clock cannot be set: no test")
    try:
        for hour_s in (HOUR_S, -HOUR_S):
            clock.jump(hour_s)
            await asyncio.sleep(JUMPED_S)
    finally:
        clock.jump(0)
    trial.ended()


async def jump_redis_clock(trial: Trial) -> None:
    """The clock of Redis jumps an hour ahead and back: all leases and much of the history have expired."""
    clock, redis = trial.lab.redis_clock, trial.lab.redis
    assert clock is not None and redis is not None
    try:
        clock.jump(HOUR_S)
        await asyncio.sleep(JUMPED_S)
        client = redis.client()
        seconds, _ = await client.time()
        await client.aclose()
        trial.expect(abs(seconds - time.time() - HOUR_S) < 60, "its clock did not jump: no test")
    finally:
        clock.jump(0)
    await asyncio.sleep(JUMPED_S)
    trial.ended()


MACHINE_FAULTS = (
    Fault(
        key="node-clock",
        name="a node's clock jumps 1 h",
        users_see="nothing",
        inject=jump_node_clock,
        healed_within_s=3.0,
    ),
    Fault(
        key="redis-clock",
        name="the clock of Redis jumps 1 h",
        users_see="reported resync",
        inject=jump_redis_clock,
        healed_within_s=3.0,
        resyncs_max=2,
        allows_repeats=True,  # keys expire by that clock
    ),
    Fault(
        key="descriptors",
        name="fd limit reached",
        users_see="new refused, old served",
        inject=exhaust_descriptors,
        disconnects=True,
    ),
)
