"""Filling: what a node missed of a channel, read from its history and delivered in its place.

Rules:
- What was missed is delivered in portions, no faster than the channel's clients take it: all at once it could be more
  than may wait for a client, which would then be closed as a slow one. A client that does not read at all holds the
  others up for `PATIENCE_S`, once.
- Where history does not follow what was delivered, its last publications are delivered behind the gap.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from gateway.errors import BrokerUnavailable
from gateway.history import Keeper
from gateway.metrics import Metrics
from gateway.publication import Publication
from gateway.sequence import Sequence as Order
from gateway.sequence import Step

__all__ = ["Filler"]

FILL_MAX: Final = 10_000  # publications, and bytes: more at once no client takes
FILL_MAX_BYTES: Final = 4 << 20
AFTER_GAP_MAX: Final = 300  # publications that are delivered behind a gap, if history has them
PATIENCE_S: Final = 5.0
PACE_S: Final = 0.005

_log = structlog.get_logger("snorky.repair")


class Filler:
    """Fills channels. deliver: is handed what a fill brought, for all subscribers of a channel.

    is_congested: True while clients of a channel have much to take. portion_max_bytes: of payloads, about.
    """

    def __init__(
        self,
        keeper: Keeper,
        deliver: Callable[[str, Sequence[Step]], None],
        metrics: Metrics,
        *,
        is_congested: Callable[[str], bool],
        portion_max_bytes: int,
    ) -> None:
        self._keeper = keeper
        self._deliver = deliver
        self._metrics = metrics
        self._is_congested = is_congested
        self._portion_max_bytes = portion_max_bytes

    async def fill(self, key: str, order: Order) -> bool:
        """Go through one fill of a channel, which it wants. False = it wants it still: history could not be read."""
        try:
            await self._fill(key, order)
            return True
        except BrokerUnavailable:
            pass
        except Exception:  # the top of a task: a channel that is not filled would be silent for ever
            _log.exception("a fill failed", channel=key[:100])
        order.abandon_fill()
        return False

    async def _fill(self, key: str, order: Order) -> None:
        since = order.begin_fill()
        missed = await self._keeper.read(key, since, max_entries=FILL_MAX, max_bytes=FILL_MAX_BYTES)
        self._metrics.fills.inc()
        if missed is None:
            kept, top = await self._keeper.recent(key, AFTER_GAP_MAX)
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
        """Wait until the channel's clients have taken most of what was delivered, or for as long as one may."""
        loop = asyncio.get_running_loop()
        while self._is_congested(key) and loop.time() < until_s:  # noqa: ASYNC110 - a wire tells nobody when it is empty
            await asyncio.sleep(PACE_S)

    def _portions(self, missed: list[Publication]) -> list[list[Publication]]:
        portions: list[list[Publication]] = [[]]
        size = 0
        for publication in missed:
            if size >= self._portion_max_bytes:
                portions.append([])
                size = 0
            portions[-1].append(publication)
            size += len(publication.payload)
        return portions
