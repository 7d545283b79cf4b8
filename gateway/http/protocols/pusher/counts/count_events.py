"""CountEvents: sends to the clients of a node how many subscribers their channels have.

Only the last number of a channel waits here. Writing to many clients is divided into chunks, so that the loop stays
responsive.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import structlog

from snorky.gateway.http.protocols.pusher.counts.local_counts import LocalCounts
from snorky.gateway.http.protocols.pusher.events import encode_event

__all__ = ["CountEvents"]

CHUNK: Final = 1_000  # writes per loop tick, as of publications
_log = structlog.get_logger("snorky.pusher")


class CountEvents:
    """The numbers of one app that clients of this node will receive. counts: the clients of each channel."""

    def __init__(self, counts: LocalCounts) -> None:
        self._counts = counts
        self._waiting: OrderedDict[str, int] = OrderedDict()
        self._has_work = asyncio.Event()

    def add(self, numbers: Iterable[tuple[str, int]]) -> None:
        """Send clients these numbers; never waits."""
        for channel, number in numbers:
            if self._counts.has_clients(channel):
                self._waiting[channel] = number
        if self._waiting:
            self._has_work.set()

    async def run(self) -> None:
        """Write events, until cancelled."""
        written = 0
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while self._waiting:
                channel, number = self._waiting.popitem(last=False)
                event = encode_event("pusher_internal:subscription_count", {"subscription_count": number}, channel)
                for client in self._counts.clients(channel):
                    try:
                        client.tell_number(channel, event)
                    except Exception:  # the others must receive it
                        _log.exception("a client was not told a number of subscribers", channel=channel)
                    written += 1
                    if written % CHUNK == 0:
                        await asyncio.sleep(0)
