"""Soak: hours of ordinary use with clients that connect and disconnect; nodes and Redis must not grow.

Compares the samples of the second quarter of the run (warm by then) with those of the last: a leak grows meanwhile.
"""

import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.fault_lab.faults.clients import rss_bytes
from tests.fault_lab.lab import Lab, running_lab
from tests.fault_lab.plan import API_KEY, Plan
from tests.fault_lab.publisher import POSTS_AT_ONCE
from tests.fault_lab.visitors import Visitors, pick
from tests.support.processes.nodes import NodeProcess

__all__ = ["Growth", "Sample", "growths", "soak"]

SAMPLE_EVERY_S = 5.0
CHURN_SHARE = 0.1  # of the clients, each round
RSS_GROWTH_MAX = 0.05
RSS_SLACK_BYTES = 2 << 20  # of one node, until arenas and caches are stable
# of descriptors, keys, series: samples are taken during churn, and the publisher keeps connections open
COUNT_SLACK = 0.05


@dataclass(frozen=True, slots=True)
class Sample:
    """What all nodes together held at one moment."""

    rss_bytes: float
    descriptors: float
    threads: float
    tasks: float
    redis_keys: float
    metric_series: float


@dataclass(frozen=True, slots=True)
class Growth:
    """One sampled quantity: means of the second quarter and of the last."""

    name: str
    before: float
    after: float
    most: float  # limit of `after`

    @property
    def is_flat(self) -> bool:
        return self.after <= self.most


async def soak(plan: Plan, minutes: float) -> tuple[list[Growth], list[str]]:
    """Churn for this long; returns the growth of each quantity, and other broken promises."""
    broken: list[str] = []
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="lab-") as directory:
        async with running_lab(plan, Path(directory)) as lab:
            until_s = time.monotonic() + 60 * minutes
            while time.monotonic() < until_s:
                round_ends_s = time.monotonic() + SAMPLE_EVERY_S
                lab.mark()
                lab.load.resume()
                await _churn(lab)
                await asyncio.sleep(max(0.0, round_ends_s - time.monotonic()))
                if not await lab.settle():
                    broken.append("the last messages of a round did not reach everybody")
                verdict, _ = await lab.judge()
                if not verdict.is_whole:
                    broken.append(f"{verdict.lost}/{verdict.duplicated}/{verdict.out_of_order}: {verdict.examples[:3]}")
                samples.append(await _sample(lab))
                print(samples[-1], file=sys.stderr, flush=True)
    return growths(samples, plan.nodes), broken


async def _churn(lab: Lab) -> None:
    """Replace some clients, and let visitors join and leave the room, with names that are never reused."""
    count = max(1, int(lab.plan.clients * CHURN_SHARE))
    plain = [member for member in lab.crowd.members if member.identity is None]
    leaving = lab.rng.sample(plain, min(count, len(plain)))
    await lab.crowd.dismiss(*leaving)
    came = lab.crowd.add(len(leaving), channels_each=lab.plan.channels_each, name=f"churn-{time.monotonic():.0f}")
    await lab.crowd.subscribed(*came, within_s=15)
    visitors = await Visitors.on(lab, pick(lab), 5)
    await visitors.dismiss()


async def _sample(lab: Lab) -> Sample:
    assert lab.redis is not None
    texts = [(await node.ask("/metrics", timeout_s=10.0))[1] for node in lab.nodes]
    client = lab.redis.client()
    # idempotency keys live for minutes, by design: their number is that of recent publications
    keys = [key async for key in client.scan_iter(count=1000) if b":once:" not in key]
    await client.aclose()
    return Sample(
        rss_bytes=sum(map(rss_bytes, lab.nodes)),
        descriptors=sum(len(os.listdir(f"/proc/{node.pid}/fd")) for node in lab.nodes),
        threads=sum(len(os.listdir(f"/proc/{node.pid}/task")) for node in lab.nodes),
        tasks=sum(await asyncio.gather(*(_tasks(node) for node in lab.nodes))),
        redis_keys=len(keys),
        metric_series=sum(line.startswith("snorky_") for text in texts for line in text.splitlines()),
    )


async def _tasks(node: NodeProcess) -> int:
    envelope = {"service": "inside", "message": {"command": "tasks", "params": {}, "callId": 1}}
    url = f"http://127.0.0.1:{node.private_port}/backend"
    async with (
        aiohttp.ClientSession(headers={"X-Backend-Key": API_KEY}) as session,
        session.post(url, json=envelope) as response,
    ):
        return int((await response.json())["message"]["data"])


def growths(samples: list[Sample], nodes: int) -> list[Growth]:
    """Compare the second quarter with the last."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    found = []
    for name in Sample.__slots__:
        before = sum(getattr(sample, name) for sample in early) / len(early)
        after = sum(getattr(sample, name) for sample in late) / len(late)
        if name == "rss_bytes":
            most = before * (1 + RSS_GROWTH_MAX) + nodes * RSS_SLACK_BYTES
        else:
            most = before * (1 + COUNT_SLACK) + nodes * POSTS_AT_ONCE
        found.append(Growth(name, before, after, most))
    return found
