"""Unkept: publications without a position on channels with a history, from a bare PUBLISH or a foreign function.

Connected subscribers receive them, but history does not contain them, so disconnected clients miss them. Therefore
this node records in the channel's state that a publication is missing after its last position; a client that recovers
from a position up to there receives a gap.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from snorky.gateway.contracts.history import HistoryStore
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.publication import Publication

__all__ = ["Unkept"]

RETRY_S: Final = 0.25
LOG_EVERY_S: Final = 10.0

_log = structlog.get_logger("snorky.repair")


class Unkept:
    """Counts and logs such publications, and has the history store record them."""

    def __init__(self, history_store: HistoryStore, metrics: Metrics) -> None:
        self._history_store = history_store
        self._metrics = metrics
        self._keys: set[str] = set()  # channels to record; only tracked ones, so their number is bounded
        self._noting = ""  # the channel being recorded
        self._task: asyncio.Task[None] | None = None
        self._logged_at: float | None = None

    def is_noted(self, key: str) -> bool:
        """True if every such publication received on a channel is recorded in its state."""
        return key not in self._keys and key != self._noting

    def receive(self, key: str, publications: Sequence[Publication]) -> int:
        """Check the publications of a channel with a history; returns how many of them history lacks."""
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
        """Cancel the background task. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _note_all(self) -> None:
        while self._keys:
            key = self._noting = self._keys.pop()
            try:
                await self._history_store.note_lost(key)
            except BrokerUnavailable:
                self._keys.add(key)
                await asyncio.sleep(RETRY_S)
            except Exception:  # the top of a task
                _log.exception("recording a publication without history failed", channel=key)
        self._noting = ""
        self._task = None
