"""Filling: read publications that a node missed from a channel's history, and deliver them in order.

Rules:
- Missed publications are delivered in portions, no faster than the channel's clients read: all at once could exceed
  a client's outbox, and the client would be closed as slow. A client that does not read at all delays the
  others for `PATIENCE_S`, once.
- If history does not continue from the last delivered publication, its latest publications are delivered after a `gap`.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from snorky.gateway.contracts.history import HistoryStore
from snorky.gateway.delivery.channel_order import ChannelOrder, Step
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.publication import Publication

__all__ = ["GapFiller"]

FILL_MAX: Final = 10_000  # publications; with more than this, or than FILL_MAX_BYTES, clients get a gap instead
FILL_MAX_BYTES: Final = 4 << 20
AFTER_GAP_MAX: Final = 300  # publications to deliver after a gap, if history has them
PATIENCE_S: Final = 5.0
PACE_S: Final = 0.005

_log = structlog.get_logger("snorky.repair")


class GapFiller:
    """Fills channels. deliver: called with the steps of a fill, for all subscribers of the channel.

    is_congested: True while clients of a channel have much unsent data. portion_max_bytes: of payloads, approximately.
    """

    def __init__(
        self,
        history_store: HistoryStore,
        deliver: Callable[[str, Sequence[Step]], None],
        metrics: Metrics,
        *,
        is_congested: Callable[[str], bool],
        portion_max_bytes: int,
    ) -> None:
        self._history_store = history_store
        self._deliver = deliver
        self._metrics = metrics
        self._is_congested = is_congested
        self._portion_max_bytes = portion_max_bytes

    async def fill(self, key: str, order: ChannelOrder) -> bool:
        """Run one fill of a channel that needs it. False = history could not be read, so the channel still needs it."""
        try:
            await self._fill(key, order)
            return True
        except BrokerUnavailable:
            pass
        except Exception:  # the top of a task: without the retry the channel would stay silent indefinitely
            _log.exception("a fill failed", channel=key[:100])
        order.abandon_fill()
        return False

    async def _fill(self, key: str, order: ChannelOrder) -> None:
        since = order.begin_fill()
        missed = await self._history_store.read(key, since, max_entries=FILL_MAX, max_bytes=FILL_MAX_BYTES)
        self._metrics.gap_repairs.inc()
        if missed is None:
            kept, top = await self._history_store.recent(key, AFTER_GAP_MAX)
            self._metrics.gaps.inc()
            _log.warning("a gap that history cannot fill", channel=key[:100])
            self._deliver(key, order.end_fill_with_gap(top, kept))
            return
        self._metrics.filled_publications.inc(len(missed))
        *portions, rest = self._portions(missed)
        until_s = asyncio.get_running_loop().time() + PATIENCE_S
        for portion in portions:
            self._deliver(key, order.pass_on(portion))
            await self._pace(key, until_s)
        self._deliver(key, order.end_fill(rest))

    async def _pace(self, key: str, until_s: float) -> None:
        """Wait until the channel's clients have read most of the delivered data, but not beyond `until_s`."""
        loop = asyncio.get_running_loop()
        while self._is_congested(key) and loop.time() < until_s:  # noqa: ASYNC110 - transports have no event for this
            await asyncio.sleep(PACE_S)

    def _portions(self, missed: list[Publication]) -> list[list[Publication]]:
        portions: list[list[Publication]] = [[]]
        size = 0
        for publication in missed:
            if size >= self._portion_max_bytes:
                portions.append([])
                size = 0
            portions[-1].append(publication)
            size += publication.size
        return portions
