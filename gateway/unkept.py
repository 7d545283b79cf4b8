"""Unkept: publications without a position on channels that keep a history, from a bare PUBLISH or a foreign function.

Subscribers that are connected get them. History does not have them, so a client that is away misses them. Therefore
this node notes in the channel's state that something is missing behind its last position; a client that comes back with
a position up to there is told of a gap.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from gateway.errors import BrokerUnavailable
from gateway.history import Keeper
from gateway.metrics import Metrics
from gateway.publication import Publication

__all__ = ["Unkept"]

RETRY_S: Final = 0.25
LOG_EVERY_S: Final = 10.0

_log = structlog.get_logger("snorky.repair")


class Unkept:
    """Counts them, logs them, and has the keeper note them."""

    def __init__(self, keeper: Keeper, metrics: Metrics) -> None:
        self._keeper = keeper
        self._metrics = metrics
        self._keys: set[str] = set()  # to be noted; of followed channels only, so there are no more than of those
        self._noting = ""  # the key that is being noted
        self._task: asyncio.Task[None] | None = None
        self._logged_at: float | None = None

    def is_noted(self, key: str) -> bool:
        """True if all that was heard of a channel and is not kept is noted in its state."""
        return key not in self._keys and key != self._noting

    def hear(self, key: str, publications: Sequence[Publication]) -> int:
        """Look at what a channel that keeps a history has brought; returns how many of it are not kept."""
        count = sum((each.position or each.hint or each.selector or each.change) is None for each in publications)
        if not count:
            return 0
        self._metrics.unkept_publications.inc(count)
        loop = asyncio.get_running_loop()
        if self._logged_at is None or loop.time() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = loop.time()
            _log.warning("publication not kept", channel=key, count=count)
        self._keys.add(key)
        if self._task is None:
            self._task = loop.create_task(self._note_all(), name="noting what is not kept")
        return count

    async def stop(self) -> None:
        """End what is under way. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _note_all(self) -> None:
        while self._keys:
            key = self._noting = self._keys.pop()
            try:
                await self._keeper.note_lost(key)
            except BrokerUnavailable:
                self._keys.add(key)
                await asyncio.sleep(RETRY_S)
            except Exception:  # the top of a task
                _log.exception("publication not kept, and not noted", channel=key)
        self._noting = ""
        self._task = None
