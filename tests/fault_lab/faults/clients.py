"""Clients that stop reading, and clients with a dead connection."""

import asyncio
import json
import time

from snorky.client import Publication
from snorky.client.aio import Client, Message, Publisher
from tests.fault_lab.figures import delays
from tests.fault_lab.lab import Lab
from tests.fault_lab.plan import PREFIX
from tests.fault_lab.trial import Fault, Trial
from tests.fault_lab.visitors import pick
from tests.support.clients.raw_ws import TEXT, RawClient, frame
from tests.support.processes.nodes import NodeProcess
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import eventually

__all__ = ["CLIENT_FAULTS"]

SLOW_SHARE = 0.1
FAT_BYTES = 32 * 1024
FAT_CHANNEL = "fat"  # without history; only the slow clients subscribe to it
CLOSED_WITHIN_S = 15.0
SLOW_MAX_BYTES = 2 << 20
RETURNED_WITHIN_S = 2.0
RETURNED_SLACK_BYTES = 2 << 20  # until memory arenas are stable
CALM_S = 4.0  # of the same load before, for comparison
GONE_WITHIN_S = 25.0
SLOW_CHANNEL = "once:slow"  # own channel rule, so nothing is trimmed
SLOW_BYTES_PER_S = 20_000
SLOW_BYTES = 1_100  # size of a message
SLOW_RECOVERY_S = 15.0  # longer than a client's call timeout


def rss_bytes(node: NodeProcess) -> int:
    """Return the resident memory of a process."""
    with open(f"/proc/{node.pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


async def stop_reading(trial: Trial) -> None:
    """A tenth of the clients stops reading a busy channel: they are closed, other clients are not affected."""
    lab = trial.lab
    calm_since_s = time.monotonic()
    await asyncio.sleep(CALM_S)
    calm_p99_s = _p99_s(lab, calm_since_s)
    index = pick(lab)
    node = lab.nodes[index]
    count = max(5, int(lab.plan.clients * SLOW_SHARE))
    slow = [await RawClient.open("127.0.0.1", node.public_port, receive_buffer_bytes=4096) for _ in range(count)]
    try:
        for client in slow:
            await client.handshake()
            await client.call("subscribe", channel=FAT_CHANNEL)
        idle = rss_bytes(node)
        assert lab.redis is not None
        redis = lab.redis.client()
        fat = json.dumps({"n": 0, "fat": "x" * FAT_BYTES})
        peak = idle
        began_s = time.monotonic()

        async def all_closed() -> bool:
            nonlocal peak
            await redis.publish(f"{PREFIX}:{{pubsub:{FAT_CHANNEL}}}", fat)
            peak = max(peak, rss_bytes(node))
            return await node.metric("snorky_slow_consumers_closed_total") - slow_before >= count

        slow_before = await node.metric("snorky_slow_consumers_closed_total")
        try:
            await eventually(all_closed, within_s=CLOSED_WITHIN_S + 15, what=f"{count} slow clients are closed")
        finally:
            await redis.aclose()
        trial.expect_within(time.monotonic() - began_s, CLOSED_WITHIN_S, f"{count} slow ones closed after")
        trial.ended()
        await asyncio.sleep(RETURNED_WITHIN_S)
        healthy_p99_s = _p99_s(lab, began_s)
        trial.figure(f"p99 of the others {1000 * healthy_p99_s:.0f} ms, {1000 * calm_p99_s:.0f} ms before")
        each = (peak - idle) / count
        kept = (rss_bytes(node) - idle) / count
        trial.figure(
            f"{each / 1024:.0f} KiB each at the peak, {kept / 1024:.0f} KiB each {RETURNED_WITHIN_S:g} s later"
        )
        trial.expect(each <= SLOW_MAX_BYTES, f"{each / 1024:.0f} KiB each, promised {SLOW_MAX_BYTES >> 10}")
        kept_max = max((peak - idle) / 2, RETURNED_SLACK_BYTES)
        trial.expect(kept * count <= kept_max, f"{kept * count / 1024:.0f} KiB were not returned")
    finally:
        for client in slow:
            client.close()


def _p99_s(lab: Lab, since_s: float) -> float:
    """Return the delays of messages published since then. Only a figure, no test limits it: benchmarks compare."""
    return delays([one for one in lab.load.acked if one.started_s >= since_s], lab.crowd.journals).p99_s


async def vanish(trial: Trial) -> None:
    """A client's connection goes dead silently: no FIN, no RST."""
    lab = trial.lab
    node = lab.nodes[pick(lab)]
    async with FaultProxy("127.0.0.1", node.public_port) as line:
        async with await RawClient.open("127.0.0.1", line.port) as client:
            await client.handshake()
            await client.send(frame(TEXT, _join_envelope()))
            before = await _connections(lab)
            line.swallow()
            began_s = time.monotonic()

            async def gone() -> bool:
                return await _connections(lab) < before

            await eventually(gone, within_s=GONE_WITHIN_S + 5, what="the half-open client is removed")
            trial.expect_within(time.monotonic() - began_s, GONE_WITHIN_S, "removed after")
    trial.ended()


async def recover_slowly(trial: Trial) -> None:
    """A client on a slow link resumes with more data than the link carries within a request's timeout."""
    lab = trial.lab
    assert lab.redis is not None
    node = lab.nodes[pick(lab)]
    numbers = range(int(SLOW_BYTES_PER_S * SLOW_RECOVERY_S / SLOW_BYTES))
    async with Publisher(lab.redis.url, prefix=PREFIX) as publisher:
        first = await publisher.publish(SLOW_CHANNEL, "first", require_history=True)
        await publisher.publish_many(
            Publication(SLOW_CHANNEL, f"{number:0{SLOW_BYTES}}", require_history=True) for number in numbers
        )
        async with FaultProxy("127.0.0.1", node.public_port) as line:
            line.bytes_per_s = SLOW_BYTES_PER_S
            began_s = time.monotonic()
            url = f"ws://127.0.0.1:{line.port}/ws"
            async with Client(url) as client, client.subscribe(SLOW_CHANNEL, recover=str(first.position)) as late:
                heard: list[object] = []
                async with asyncio.timeout(3 * SLOW_RECOVERY_S):
                    while len(heard) < len(numbers):
                        event = await anext(late)
                        heard.append(int(event.data) if isinstance(event, Message) else event)
                await publisher.publish(SLOW_CHANNEL, "live", require_history=True)
                async with asyncio.timeout(SLOW_RECOVERY_S):
                    live = await anext(late)
            trial.figure(f"{len(numbers) * SLOW_BYTES >> 10} KiB recovered in {time.monotonic() - began_s:.1f} s")
            trial.expect(heard == list(numbers), f"it was given {str(heard)[:200]}")
            trial.expect(isinstance(live, Message) and live.data == "live", f"it received nothing new: {live}")
            trial.expect(line.connections == 1, f"it needed {line.connections} connections")
    trial.ended()


def _join_envelope() -> bytes:
    call = {"command": "subscribe", "params": {"channel": "quiet"}, "callId": 1}
    return json.dumps({"service": "pubsub", "message": call}).encode()


async def _connections(lab: Lab) -> float:
    return await lab.metric("snorky_connections")


CLIENT_FAULTS = (
    Fault(
        key="slow",
        name="a tenth of the clients stops reading",
        users_see="no effect on the others",
        inject=stop_reading,
        healed_within_s=3.0,
    ),
    Fault(
        key="vanish",
        name="half-open client",
        users_see="gone",
        inject=vanish,
        healed_within_s=3.0,
    ),
    Fault(
        key="slow-line",
        name="client behind 20 KB/s comes back",
        users_see="all missed messages",
        inject=recover_slowly,
        healed_within_s=3.0,
        needs_history=True,
        is_in_ci=False,  # an end-to-end test covers it with shorter timeouts
    ),
)
