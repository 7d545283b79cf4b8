"""Nodes that die, drain and stall."""

import asyncio
import time
from collections import Counter

from tests.fault_lab.trial import Fault, Trial
from tests.fault_lab.visitors import Visitors, pick, until_all_present

__all__ = ["NODE_FAULTS"]

GONE_WITHIN_S = 15.0
EXIT_WITHIN_S = 30.0
STALL_S = 20.0
PEAK_TO_MEAN_MAX = 2.0
PEAK_NEEDS = 200  # clients that one drain moves; with fewer, the fullest of five bins is random


async def kill(trial: Trial) -> None:
    """SIGKILL: the other nodes release what the dead node held."""
    lab = trial.lab
    index = pick(lab)
    visitors = await Visitors.on(lab, index)
    trial.expected_lefts.update(visitors.identities)
    lab.nodes[index].kill()
    trial.ended()
    try:
        took_s = await visitors.until("left", 1, within_s=GONE_WITHIN_S + 5)
        trial.expect_within(took_s, GONE_WITHIN_S, "members removed")
        took_s += await visitors.until_nameless(5)
        trial.expect_within(took_s, GONE_WITHIN_S, "names free")
        trial.expect(visitors.is_exactly("left", 1), f"not exactly one `left` each: {visitors.seen('left')}")
        # clients that reconnected at once took over their names from the dead node; the cleanup must leave these
        await until_all_present(lab, within_s=5)
    finally:
        await visitors.dismiss()
        await lab.restart_node(index)


async def terminate(trial: Trial) -> None:
    """SIGTERM: the node sends its clients away over the grace period."""
    await _drain(trial, pick(trial.lab))
    trial.ended()


async def roll(trial: Trial) -> None:
    """A deployment: each node in turn drains, ends, and is started again."""
    for index in range(len(trial.lab.nodes)):
        await _drain(trial, index)
    trial.ended()


async def _drain(trial: Trial, index: int) -> None:
    lab = trial.lab
    began_s = time.monotonic()
    lab.nodes[index].terminate()
    code = await lab.nodes[index].wait(EXIT_WITHIN_S + 10)
    took_s = time.monotonic() - began_s
    trial.expect_within(took_s, EXIT_WITHIN_S, "exit")
    trial.expect(code == 0, f"exit code {code}")
    try:
        await lab.crowd.subscribed(within_s=10)
    finally:
        await lab.restart_node(index)
    moved = [moment for moment in lab.crowd.handshakes_s if moment >= began_s]
    if moved:
        bins = Counter(int(moment - began_s) for moment in moved)
        mean = len(moved) / lab.plan.drain_grace_s
        peak = max(bins.values())
        trial.figure(f"{len(moved)} moved, {peak} handshakes/s at the peak, {mean:.1f} in the mean")
        trial.expect(len(moved) < PEAK_NEEDS or peak <= PEAK_TO_MEAN_MAX * mean, f"handshake peak {peak}/s")
    await lab.whole(within_s=15)


async def stall(trial: Trial) -> None:
    """SIGSTOP for longer than a lease: the others fence the node, and it registers again what it holds."""
    lab = trial.lab
    index = pick(lab)
    visitors = await Visitors.on(lab, index)
    away = {member.identity for member in lab.crowd.residents if member.identity}
    # its residents are fenced too, but the node does not know yet
    trial.expected_lefts.update(visitors.identities | away)
    node = lab.nodes[index]
    try:
        node.freeze()
        try:
            frozen_s = time.monotonic()
            took_s = await visitors_elsewhere(visitors, trial, "left", within_s=GONE_WITHIN_S + 5)
            trial.expect_within(took_s, GONE_WITHIN_S, "fenced after")
            await asyncio.sleep(max(0.0, STALL_S - (time.monotonic() - frozen_s)))
        finally:
            node.thaw()
        trial.ended()
        await visitors.until("joined", 2, within_s=15)
        await lab.whole(within_s=15)
        await visitors.until("left", 1, within_s=5)
        trial.expect(visitors.is_exactly("left", 1), f"not exactly one `left` each: {visitors.seen('left')}")
        trial.expect(visitors.is_exactly("joined", 2), f"not exactly one more `joined` each: {visitors.seen('joined')}")
    finally:
        await visitors.dismiss()


async def visitors_elsewhere(visitors: Visitors, trial: Trial, status: str, *, within_s: float) -> float:
    """Wait until one resident has seen it of all of them: residents on the stalled node receive nothing meanwhile."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while not any(set(seen) == visitors.identities for seen in visitors.seen(status)):
        if loop.time() - began_s > within_s:
            trial.expect(False, f"no resident saw `{status}` within {within_s:g} s")
            break
        await asyncio.sleep(0.05)
    return loop.time() - began_s


NODE_FAULTS = (
    Fault(
        key="kill",
        name="kill -9 a node",
        users_see="reconnect elsewhere, replay",
        inject=kill,
        healed_within_s=GONE_WITHIN_S,
        disconnects=True,
    ),
    Fault(
        key="terminate",
        name="SIGTERM a node",
        users_see="paced reconnects",
        inject=terminate,
        disconnects=True,
        is_in_ci=False,  # the rolling restart does it to each
    ),
    Fault(
        key="roll",
        name="rolling restart behind nginx",
        users_see="paced reconnects",
        inject=roll,
        disconnects=True,
        is_random=False,
    ),
    Fault(
        key="stall",
        name="node stalled 20 s",
        users_see="fenced, registers again",
        inject=stall,
        disconnects=True,  # a client that cannot keep its name is closed with 4010; pings stay unanswered
        healed_within_s=15.0,
    ),
)
