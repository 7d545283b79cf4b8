"""Knocks: limits how often one address may try to connect to a node.

Rules:
- An address's burst is twice its limit of connections: when a node dies, all its clients reconnect at once.
- The REMEMBERED addresses seen last are kept; a forgotten address starts with a full bucket.
"""

from collections import OrderedDict
from time import monotonic
from typing import Final

from snorky.gateway.config.settings import Limits
from snorky.gateway.connection.rate_limiter import Bucket

__all__ = ["Knocks"]

REMEMBERED: Final = 10_000
BURST_MIN: Final = 20


class Knocks:
    """One per public port."""

    def __init__(self, limits: Limits) -> None:
        # without a limit of connections per address, addresses do not identify clients
        self._per_s = limits.handshakes_per_s_per_ip if limits.connections_per_ip else 0.0
        self._burst = float(max(BURST_MIN, 2 * limits.connections_per_ip))
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, site: str) -> bool:
        """Count one attempt; False if there were too many."""
        if not self._per_s or not site:
            return True
        now_s = monotonic()
        bucket = self._buckets.get(site)
        if bucket is None:
            bucket = self._buckets[site] = Bucket(self._per_s, self._burst, now_s)
            if len(self._buckets) > REMEMBERED:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(site)
        bucket.refill(now_s)
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True
