"""Linger: keeps a subscription for a while after the last subscriber has left: reloaded pages subscribe again soon."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from snorky.gateway.redis.pubsub.heard import HeardChannel

__all__ = ["Linger"]


class Linger:
    """The channels that are unwanted since less than linger_s. on_end: called with each when its time has passed."""

    def __init__(self, linger_s: float, *, on_end: Callable[[HeardChannel], None]) -> None:
        self._linger_s = linger_s
        self._on_end = on_end
        self._until: OrderedDict[HeardChannel, float] = OrderedDict()  # loop time; in order, as linger_s is constant
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False

    def __contains__(self, channel: HeardChannel) -> bool:
        return channel in self._until

    def begin(self, channel: HeardChannel) -> None:
        """Start a channel's time, also if it is running."""
        loop = asyncio.get_running_loop()
        self._until.pop(channel, None)  # so that it comes last again
        self._until[channel] = loop.time() + self._linger_s
        if self._timer is None and not self._is_stopped:
            self._timer = loop.call_later(self._linger_s, self._end)

    def cancel(self, channel: HeardChannel) -> None:
        """Forget a channel: it is wanted again. Does nothing if it is unknown."""
        self._until.pop(channel, None)

    def clear(self) -> None:
        """Forget all channels."""
        self._until.clear()

    def stop(self) -> None:
        """Stop the timer. Idempotent."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._until:
            channel, until = next(iter(self._until.items()))
            if until > now:
                self._timer = loop.call_at(until, self._end)
                break
            del self._until[channel]
            self._on_end(channel)
