"""RedisLimitStore: what the nodes count against limits, in Redis.

Names are spread over BUCKETS buckets, each with all its keys in one slot: `PREFIX:{limits N}:owners`, a set of node
ids, and `PREFIX:{limits N}:units:NODE`, what this node counts, which expires. So the script that takes units sees the
units of all living nodes. A node renews its part of each bucket: BUCKETS commands in 2 s, whatever the number of
clients.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from snorky.gateway.contracts.limits import Name, OnLost
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.scripts import Scripts
from snorky.gateway.redis.limits.bucket import SETTLE_S, Bucket

__all__ = ["BUCKETS", "RedisLimitStore"]

BUCKETS: Final = 2  # the same for all nodes; each costs an idle node a command in 2 s
TTL_S: Final = 8.0  # as the lease of a node: three renewals may fail
RENEW_S: Final = 2.0


class RedisLimitStore:
    """Implements `contracts.limits.LimitStore`. commands: not started, one for each Redis. of: selects one by a key."""

    def __init__(
        self,
        commands: Sequence[Commands],
        of: Callable[[str], Commands],
        *,
        prefix: str,
        node_id: str,
        ttl_s: float = TTL_S,
        renew_s: float = RENEW_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._commands = commands
        self._renew_s = renew_s
        self._on_lost: OnLost = lambda _limit, _name, _units: None
        self._buckets = [
            Bucket(
                Scripts(of(f"limits {number}")),
                prefix=prefix,
                number=number,
                node_id=node_id,
                ttl_s=ttl_s,
                settle_s=settle_s,
                on_lost=self._lost,
            )
            for number in range(BUCKETS)
        ]
        self._reported: set[Bucket] = set()  # buckets in which Redis has demands of this node
        self._task: asyncio.Task[None] | None = None

    def start(self, on_lost: OnLost) -> None:
        """See LimitStore."""
        self._on_lost = on_lost
        for each in self._commands:
            each.on_up = self._renew  # Redis may have restarted without its data
            each.start()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="limits renewal")

    async def stop(self) -> None:
        """See LimitStore."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(*(bucket.stop() for bucket in self._buckets))
        await asyncio.gather(*(each.stop() for each in self._commands))

    async def take(self, limit: str, name: str, units: int, maximum: int) -> bool:
        """See LimitStore."""
        full = _full(limit, name)
        return await self._of(full).take(full, units, maximum)

    def give_back(self, limit: str, name: str, units: int) -> None:
        """See LimitStore."""
        full = _full(limit, name)
        self._of(full).give_back(full, units)

    def is_current(self, limit: str, name: str) -> bool:
        """See LimitStore."""
        return self._of(_full(limit, name)).is_current

    @property
    def nodes(self) -> int:
        """See LimitStore."""
        return 1 + len({node for bucket in self._buckets for node in bucket.others})

    async def exchange(self, demands: Mapping[Name, float]) -> dict[Name, float]:
        """See LimitStore."""
        apart: dict[Bucket, dict[str, float]] = {bucket: {} for bucket in self._reported}
        for name, demand in demands.items():
            full = _full(*name)
            apart.setdefault(self._of(full), {})[full] = demand
        self._reported |= apart.keys()
        answers = await asyncio.gather(*(bucket.exchange(each) for bucket, each in apart.items()))
        self._reported = {bucket for bucket, each in apart.items() if each}
        found: dict[str, float] = {}
        for each, others in zip(apart.values(), answers, strict=True):
            found |= dict(zip(each, others, strict=True))
        return {name: found[_full(*name)] for name in demands}

    def _of(self, full: str) -> Bucket:
        digest = hashlib.blake2b(full.encode("utf-8", "surrogatepass"), digest_size=4).digest()
        return self._buckets[int.from_bytes(digest, "big") % BUCKETS]

    def _lost(self, full: str, units: int) -> None:
        limit, _, name = full.partition(" ")
        self._on_lost(limit, name, units)

    def _renew(self) -> None:
        for bucket in self._buckets:
            bucket.renew()

    async def _run(self) -> None:
        while True:
            self._renew()
            await asyncio.sleep(self._renew_s)


def _full(limit: str, name: str) -> str:
    return f"{limit} {name}"
