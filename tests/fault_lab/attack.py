"""Attack one node in every way at once while a well-behaved client uses it. Exit code 1 if that client suffers.

    python -m tests.fault_lab.attack [--seconds 15] [--scale 1.0]

The well-behaved client subscribes to a channel with history and calls a command. The attackers (`attackers.py`)
run in another process.
"""

import argparse
import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis

from snorky.client.aio import Client, Message, Publisher
from tests.fault_lab.attackers import CHANNEL
from tests.support.processes.nodes import GATEWAY, NodeProcess, Process, RedisProcess
from tests.support.processes.tools import eventually

__all__ = ["Report", "attack"]

RSS_GROWTH_MAX_BYTES: Final = 64 << 20
P99_FACTOR_MAX: Final = 3.0
P99_FLOOR_S: Final = 0.005  # below this, the scheduler alone causes such delays
REDIS_MAX_BYTES: Final = 64 << 20
BASELINE_WITHIN_S: Final = 30.0
PACE_S: Final = 0.02
SAMPLE_S: Final = 0.25
MISSING_WITHIN_S: Final = 20.0
CONFIG: Final = """
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "well-behaved"
history = 5000
allow_publish = "nobody"
[services.cursors]
class = "snorky.services.cursors:CursorsService"
[services.chat]
class = "snorky.services.chat:ChatService"
"""


@dataclass(slots=True)
class Report:
    """Result of an attack. broken: promises not kept; the caller judges p99. node_share: of one core."""

    quiet_s: float = 0.0
    attacked_s: float = 0.0
    rss_growth_bytes: int = 0
    redis_peak_bytes: int = 0
    published: int = 0
    missing: int = 0
    forged: int = 0
    baseline_s: float = 0.0
    node_share: float = 0.0
    waiting_share: float = 0.0
    did: str = ""
    broken: list[str] = field(default_factory=list)

    @property
    def factor(self) -> float:
        """p99 under attack divided by p99 before it."""
        return self.attacked_s / max(self.quiet_s, P99_FLOOR_S)

    def rows(self) -> list[tuple[str, str, str, bool]]:
        """Each measurement, its limit, and whether the limit was kept."""
        growth, peak = self.rss_growth_bytes, self.redis_peak_bytes
        limit_s = P99_FACTOR_MAX * max(self.quiet_s, P99_FLOOR_S)
        p99 = f"{self.quiet_s * 1000:.1f} ms, {self.attacked_s * 1000:.1f} ms attacked"
        return [
            ("p99 of the well-behaved client", p99, f"<= {limit_s * 1000:.1f} ms", self.factor <= P99_FACTOR_MAX),
            ("its messages", f"{self.missing} missing of {self.published}", "0 missing", not self.missing),
            ("its calls", f"{self.forged} answered by others", "0", not self.forged),
            ("memory of the node", f"+{growth / 2**20:.0f} MiB", "<= +64 MiB", growth <= RSS_GROWTH_MAX_BYTES),
            ("memory of Redis", f"{peak / 2**20:.0f} MiB", "<= maxmemory, 64 MiB", peak <= REDIS_MAX_BYTES),
            ("back to baseline", f"{self.baseline_s:.1f} s", "<= 30 s", self.baseline_s <= BASELINE_WITHIN_S),
        ]


class _Honest:
    """The client that must not be affected. delays: of deliveries and calls since they were last taken."""

    def __init__(self, client: Client, publisher: Publisher) -> None:
        self.delays_s: list[float] = []
        self.published = self.forged = 0
        self.heard: set[int] = set()
        self._client = client
        self._publisher = publisher

    def take(self) -> float:
        """Return the 99th percentile and start a new measurement."""
        delays_s, self.delays_s = sorted(self.delays_s), []
        return delays_s[int(len(delays_s) * 0.99)] if delays_s else float("inf")

    async def publish(self) -> None:
        """Publish numbers, each with its send time."""
        while True:
            number = self.published
            self.published += 1
            await self._publisher.publish("honest", {"n": number, "at": time.monotonic()}, key=str(number))
            await asyncio.sleep(PACE_S)

    async def hear(self, kept: Any) -> None:
        """Record each delivery and its delay."""
        async for event in kept:
            if isinstance(event, Message):
                self.heard.add(event.data["n"])
                self.delays_s.append(time.monotonic() - event.data["at"])

    async def listen(self, noise: Any) -> None:
        """Also subscribe to the channel that attackers publish to."""
        async for _ in noise:
            pass

    async def call(self) -> None:
        """Call a command repeatedly and check the replies."""
        while True:
            at_s = time.monotonic()
            info = await self._client.call("gateway", "info")
            self.delays_s.append(time.monotonic() - at_s)
            self.forged += not isinstance(info, dict)
            await asyncio.sleep(PACE_S)


@asynccontextmanager
async def _honest(node: NodeProcess, redis_url: str) -> AsyncIterator[_Honest]:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(node.websocket_url))
        publisher = await stack.enter_async_context(Publisher(redis_url))
        kept = await stack.enter_async_context(client.subscribe("honest", recover=True))
        noise = await stack.enter_async_context(client.subscribe(CHANNEL))
        honest = _Honest(client, publisher)
        work = (honest.publish(), honest.hear(kept), honest.listen(noise), honest.call())
        tasks = [asyncio.ensure_future(each) for each in work]
        stack.push_async_callback(_cancel, tasks)
        yield honest
        ended = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        assert not ended, f"the well-behaved client was affected: {ended}"


async def _cancel(tasks: Sequence["asyncio.Future[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _waited_s(pid: int) -> float:
    """Return how long the process was runnable without a core: the machine causes that, not the attackers."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9


def _rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


async def attack(directory: Path, *, seconds: float, scale: float) -> Report:
    """Run a node and a Redis, measure, attack for `seconds`, measure, and wait until the node has recovered."""
    report = Report()
    config = directory / "attacked.toml"
    config.write_text(CONFIG, encoding="utf-8")
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess.running(directory))
        server: Any = await stack.enter_async_context(Redis.from_url(redis.url))
        await server.config_set("maxmemory", REDIS_MAX_BYTES)
        env = {"SNORKY_REDIS_URL": redis.url, "SNORKY_PRIVATE__API_KEY": secrets.token_urlsafe(32)}
        argv = (*GATEWAY, "serve", "--config", str(config), "--log-level", "warning")
        node = await stack.enter_async_context(NodeProcess.running(env, argv=argv))

        async def is_ready() -> bool:
            return await node.status("/readyz") == 200

        await eventually(is_ready, within_s=20, what="the node is ready")
        honest = await stack.enter_async_context(_honest(node, redis.url))
        await asyncio.sleep(2.0)  # warm-up
        honest.take()
        await asyncio.sleep(min(5.0, seconds))
        report.quiet_s, connections = honest.take(), await node.metric("snorky_connections")
        before_bytes, began_s = _rss_bytes(node.pid), time.monotonic()
        node_s, waited_s = _cpu_s(node.pid), _waited_s(node.pid)
        words = ("tests.fault_lab.attackers", str(node.public_port), str(node.private_port), str(seconds), str(scale))
        attackers = Process((sys.executable, "-m", *words), ready=r"^pings \d+")
        stack.push_async_callback(attackers.close)
        while attackers.is_running:
            report.rss_growth_bytes = max(report.rss_growth_bytes, _rss_bytes(node.pid) - before_bytes)
            report.redis_peak_bytes = max(report.redis_peak_bytes, (await server.info("memory"))["used_memory"])
            await asyncio.sleep(SAMPLE_S)
        report.attacked_s = honest.take()
        report.did = attackers.log.strip()
        ended_s = time.monotonic()
        report.node_share = (_cpu_s(node.pid) - node_s) / (ended_s - began_s)
        report.waiting_share = (_waited_s(node.pid) - waited_s) / (ended_s - began_s)

        async def is_as_before() -> bool:
            await asyncio.sleep(1.0)
            is_quiet = honest.take() <= P99_FACTOR_MAX * max(report.quiet_s, P99_FLOOR_S)
            is_alone = await node.metric("snorky_connections") == connections
            return is_quiet and is_alone and await is_ready()

        with suppress(AssertionError):
            await eventually(is_as_before, within_s=BASELINE_WITHIN_S * 2, what="all is as before")
        report.baseline_s = time.monotonic() - ended_s
        last = honest.published

        async def has_heard_all() -> bool:
            return honest.heard >= set(range(last - 1))

        with suppress(AssertionError):
            await eventually(has_heard_all, within_s=MISSING_WITHIN_S, what="every publication was delivered")
        report.published, report.forged = last - 1, honest.forged
        report.missing = len(set(range(last - 1)) - honest.heard)
    report.broken = [what for what, _, _, is_kept in report.rows() if not is_kept]
    return report


def render(report: Report) -> str:
    """Draw the table."""
    rows = [("", "measured", "required", ""), *((*row[:3], "kept" if row[3] else "BROKEN") for row in report.rows())]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    busy = f"of the time the node ran for {report.node_share:.0%} and waited for a core for {report.waiting_share:.0%}"
    return "\n".join([*lines, "", busy, f"attackers: {report.did}"])


def main() -> int:
    """Parse the command line and run the attack."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault_lab.attack")
    parser.add_argument("--seconds", type=float, default=15.0, help="of the attack")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of attackers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attack-") as directory:
        report = asyncio.run(attack(Path(directory), seconds=arguments.seconds, scale=arguments.scale))
    print(render(report))
    return int(bool(report.broken))


if __name__ == "__main__":
    sys.exit(main())
