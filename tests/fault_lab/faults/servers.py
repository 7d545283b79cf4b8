"""Faults of the only Redis and of the connection to it."""

import asyncio
import time
from typing import Any

from tests.fault_lab.figures import percentile
from tests.fault_lab.trial import Fault, Trial
from tests.fault_lab.visitors import until_all_present
from tests.support.processes.tools import eventually
from tests.support.servers.redis_servers import RedisServer

__all__ = ["SERVER_FAULTS", "expect_refused_unsent"]

KILLS = 100
KILL_HEALED_WITHIN_S = 1.0
KILL_HEALED_MAX_S = 5.0  # after this the client's request fails
PAUSE_S = 11.0
NEWCOMERS = 4
DETECTED_WITHIN_S = 6.0
HEALED_WITHIN_S = 3.0
REBUILT_WITHIN_S = 10.0


def _redis(trial: Trial) -> RedisServer:
    assert trial.lab.redis is not None
    return trial.lab.redis


async def _command(trial: Trial, *words: Any) -> Any:
    client = _redis(trial).client()
    try:
        return await client.execute_command(*words)
    finally:
        await client.aclose()


async def kill_pubsub(trial: Trial) -> None:
    """CLIENT KILL TYPE pubsub, a hundred times, each after recovery from the last: all clients get new messages."""
    lab = trial.lab
    killed, taken_s = 0, []
    for _ in range(KILLS):
        killed += await _command(trial, "CLIENT", "KILL", "TYPE", "pubsub")
        began_s = time.monotonic()
        fresh = {channel: number + 1 for channel, number in lab.load.latest.items()}
        await lab.crowd.reached(fresh, KILL_HEALED_MAX_S)
        taken_s.append(time.monotonic() - began_s)
    trial.ended()
    taken_s.sort()
    p50_s, p99_s = percentile(taken_s, 0.5), percentile(taken_s, 0.99)
    trial.figure(f"{KILLS} times, {killed} connections killed; new messages everywhere after {p50_s:.2f} s (p50)")
    trial.figure(f"{p99_s:.2f} s (p99), {taken_s[-1]:.2f} s (max)")
    trial.expect(killed >= KILLS, f"only {killed} connections were there to kill")
    trial.expect(taken_s[-1] <= KILL_HEALED_WITHIN_S, f"one was healed after {taken_s[-1]:.2f} s")


async def freeze(trial: Trial) -> None:
    """SIGSTOP for longer than a lease. Clients that join meanwhile get no confirmation until Redis is back."""
    crowd = trial.lab.crowd
    newcomers = []
    _redis(trial).freeze()
    try:
        await asyncio.sleep(PAUSE_S / 4)
        newcomers = crowd.add(NEWCOMERS, channels_each=1, name="newcomer", comes_back=False, plain_channel="plain")
        await asyncio.sleep(PAUSE_S * 3 / 4)
        told = sum(client.is_subscribed for client in newcomers)
        trial.expect(told == 0, f"{told} of {NEWCOMERS} got a subscribe confirmation while Redis was stopped")
        trial.expect(all(client.is_connected for client in newcomers), "newcomers could not subscribe")
    finally:
        _redis(trial).thaw()
    trial.ended()
    await crowd.subscribed(*newcomers, within_s=HEALED_WITHIN_S)
    await crowd.dismiss(*newcomers)


async def pause(trial: Trial) -> None:
    """CLIENT PAUSE ALL for longer than a lease."""
    await _command(trial, "CLIENT", "PAUSE", int(PAUSE_S * 1000), "ALL")
    await asyncio.sleep(PAUSE_S)
    trial.ended()


async def restart_empty(trial: Trial) -> None:
    """Killed, and started again empty."""
    await _redis(trial).restart()
    trial.ended()
    await _until_rebuilt(trial)


async def flush(trial: Trial) -> None:
    """FLUSHALL."""
    await _command(trial, "FLUSHALL")
    trial.ended()
    await _until_rebuilt(trial)


async def _until_rebuilt(trial: Trial) -> None:
    took_s = await until_all_present(trial.lab, within_s=REBUILT_WITHIN_S + 10)
    trial.expect_within(took_s, REBUILT_WITHIN_S, "presence rebuilt")


async def half_open(trial: Trial) -> None:
    """Bytes are dropped in both directions; connections stay open."""
    proxy = trial.lab.proxy
    assert proxy is not None
    proxy.swallow()
    try:
        took_s = await _until_unverified(trial)
        trial.expect_within(took_s, DETECTED_WITHIN_S, "detected")
    finally:
        proxy.heal()
    trial.ended()


async def unreachable(trial: Trial) -> None:
    """Connections are reset and refused."""
    proxy = trial.lab.proxy
    assert proxy is not None
    proxy.refuse()
    try:
        took_s = await _until_unverified(trial)
        trial.expect_within(took_s, DETECTED_WITHIN_S, "detected")
        await asyncio.sleep(2)
    finally:
        proxy.heal()
    trial.ended()


async def _until_unverified(trial: Trial) -> float:
    began_s = time.monotonic()

    async def all_unverified() -> bool:
        answers = await asyncio.gather(*(node.status("/readyz", timeout_s=1.0) for node in trial.lab.nodes))
        return set(answers) == {503}

    await eventually(all_unverified, within_s=DETECTED_WITHIN_S + 6, what="/readyz says 503 on all nodes")
    return time.monotonic() - began_s


async def out_of_memory(trial: Trial) -> None:
    """No memory for writes: a publish fails with a clear error and reaches no subscriber."""
    await _command(trial, "CONFIG", "SET", "maxmemory", "1")
    try:
        await asyncio.sleep(3)
    finally:
        await _command(trial, "CONFIG", "SET", "maxmemory", "0")
    trial.ended()
    await expect_refused_unsent(trial)


async def read_only(trial: Trial) -> None:
    """The server becomes a replica of a server that does not exist: it refuses writes."""
    await _command(trial, "REPLICAOF", "127.0.0.1", "1")
    try:
        await asyncio.sleep(3)
    finally:
        await _command(trial, "REPLICAOF", "NO", "ONE")
    trial.ended()
    await expect_refused_unsent(trial)


async def expect_refused_unsent(trial: Trial) -> None:
    """Check that publishes were refused and that none of them was delivered."""
    lab = trial.lab
    await lab.whole(within_s=15)
    if not lab.plan.history:
        return  # a plain PUBLISH stores nothing, and a Redis in this state does not refuse it
    refused = list(lab.load.uncertain)
    trial.figure(f"{len(refused)} publishes refused: {sorted({one.error for one in refused})[:3]}")
    trial.expect(bool(refused), "no publish was refused")
    received = {(journal.channel, one.number) for journal in lab.crowd.journals for one in journal.received()}
    sent = [one for one in refused if (one.channel, one.number) in received]
    trial.expect(not sent, f"{len(sent)} were refused but delivered")


SERVER_FAULTS = (
    Fault(
        key="kill-pubsub",
        name=f"CLIENT KILL TYPE pubsub x {KILLS}",
        users_see="nothing",
        inject=kill_pubsub,
        healed_within_s=KILL_HEALED_WITHIN_S,
    ),
    Fault(
        key="freeze",
        name=f"Redis stopped {PAUSE_S:g} s (SIGSTOP)",
        users_see="publishes wait or fail, then work again",
        inject=freeze,
        healed_within_s=HEALED_WITHIN_S,
    ),
    Fault(
        key="pause",
        name=f"CLIENT PAUSE {PAUSE_S:g} s",
        users_see="publishes wait or fail, then work again",
        inject=pause,
        healed_within_s=HEALED_WITHIN_S,
        is_in_ci=False,
    ),
    Fault(
        key="restart-empty",
        name="Redis killed, restarted empty",
        users_see="one reported resync a channel",
        inject=restart_empty,
        healed_within_s=REBUILT_WITHIN_S,
        resyncs_max=1,
        allows_repeats=True,
    ),
    Fault(
        key="flush",
        name="FLUSHALL",
        users_see="one reported resync a channel",
        inject=flush,
        healed_within_s=REBUILT_WITHIN_S,
        resyncs_max=1,
        allows_repeats=True,
    ),
    Fault(
        key="half-open",
        name="Redis half-open",
        users_see="as a pause",
        inject=half_open,
        # a connect and a history read on the dead connection time out after 2 s each, with a pause of 1 s each
        healed_within_s=7.0,
    ),
    Fault(
        key="unreachable",
        name="Redis unreachable",
        users_see="as a pause",
        inject=unreachable,
        healed_within_s=6.0,
    ),
    Fault(
        key="memory",
        name="Redis out of memory",
        users_see="publish refused, clear error",
        inject=out_of_memory,
        healed_within_s=HEALED_WITHIN_S,
    ),
    Fault(
        key="read-only",
        name="Redis a read-only replica",
        users_see="publish refused, clear error",
        inject=read_only,
        healed_within_s=HEALED_WITHIN_S,
        disconnects=True,
        resyncs_max=1,
    ),
)
