"""RateExchange: nodes exchange the demand of their active names, so that each gets its part of a rate.

Rules:
- One exchange in about a second for all names, earlier if a bucket is half empty, but not within GAP_S of the last one.
- Names that ask for little are not reported, and at most NAMES_MAX are. They keep an equal part for each node.
- Without an answer of Redis every name has an equal part for each node, so the limit is not exceeded.
"""

import asyncio
from time import monotonic
from typing import Final

import structlog

from snorky.gateway.connection.cluster_rates import IDLE_PART, ClusterBucket, ClusterRates
from snorky.gateway.contracts.limits import LimitStore
from snorky.gateway.errors import BrokerUnavailable

__all__ = ["RateExchange"]

INTERVAL_S: Final = 1.0
GAP_S: Final = 0.1
NAMES_MAX: Final = 500
REPORTED_PART: Final = 0.05  # of an equal part: what is not reported by all nodes together is 5 % of a limit

_log = structlog.get_logger("snorky.node")


class RateExchange:
    """The exchange of one node."""

    def __init__(self, rates: ClusterRates, store: LimitStore) -> None:
        self._rates = rates
        self._store = store
        self._has_reported = False
        self._is_failing = False
        self._low = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to exchange; returns at once."""
        self._rates.on_low = self._low.set
        self._rates.count_nodes = lambda: self._store.nodes
        self._task = asyncio.get_running_loop().create_task(self._run(), name="rate exchange")

    async def stop(self) -> None:
        """Stop. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def exchange(self) -> None:
        """Measure the demand, exchange it once, and set this node's parts. Never raises."""
        rates = self._rates
        equal, now_s = 1 / rates.nodes, monotonic()
        asked: list[tuple[float, ClusterBucket]] = []
        for bucket in list(rates.active):
            demand = bucket.measure(now_s) / bucket.limit_per_s
            if demand < IDLE_PART:
                del rates.active[bucket]
            if demand >= REPORTED_PART * equal and rates.nodes > 1:
                asked.append((demand, bucket))
            else:
                bucket.allow(equal)
        asked.sort(key=lambda each: each[0], reverse=True)
        for _, bucket in asked[NAMES_MAX:]:
            bucket.allow(equal)
        reported = [bucket for _, bucket in asked[:NAMES_MAX]]
        if not reported and not self._has_reported:
            return
        self._has_reported = bool(reported)
        try:
            others = await self._store.exchange({bucket.key: bucket.demand_per_s for bucket in reported})
        except BrokerUnavailable as error:
            if not self._is_failing:
                _log.warning("demands not exchanged; each node has an equal part of each rate", error=error.what)
            self._is_failing = True
            for bucket in reported:
                bucket.allow(equal)
            return
        self._is_failing = False
        for bucket in reported:
            bucket.allow(bucket.demand_per_s / (bucket.demand_per_s + others[bucket.key]))

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(INTERVAL_S):
                    await self._low.wait()
            except TimeoutError:
                pass
            self._low.clear()
            try:
                await self.exchange()
            except Exception:  # the top of a task
                _log.exception("demands not exchanged")
            await asyncio.sleep(GAP_S)
