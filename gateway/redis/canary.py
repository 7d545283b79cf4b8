"""Canary: measures whether what is published is heard. No error of a connection proves that it is not deaf.

A frozen Redis, a cable pulled, a proxy that forgot us: nothing comes, and nothing says so. Therefore:
- Deaf from the start, and from every loss, until a canary came back that was published since.
- When `silence_s` passed without a publication, a canary goes out through the real publish path to a channel of
  this node's own. When `deadline_s` more passed without any: deaf, and both connections are made again.
- Time in which this node did not read is not silence: paused, or the loop was not running (SIGSTOP, a long pass).
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from gateway.metrics import Metrics
from gateway.redis.publisher import PublishRefused

__all__ = ["Canary"]

TICK_S = 0.1  # how exactly the deadlines are kept; costs nothing beside anything

_log = structlog.get_logger("snorky.redis")


class Canary:
    """Watches one broker. publish: sends one canary. redial: gives up connections that do not bring it.

    clock: seconds, monotonic. `tick` is called by the one who runs it, every `TICK_S`.
    """

    def __init__(
        self,
        *,
        publish: Callable[[bytes], "asyncio.Future[int]"],
        redial: Callable[[str], None],
        metrics: Metrics,
        silence_s: float,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publish = publish
        self._redial = redial
        self._metrics = metrics
        self._silence_s = silence_s
        self._deadline_s = deadline_s
        self._clock = clock
        self._is_whole = False
        self._is_paused = False
        self._heard_at = self._ticked_at = clock()
        self._first = self._number = 0  # the first canary sent since whole, and the last
        self._sent_at: float | None = None  # the last one is out since
        self._is_unsent = False  # its connection failed: it may have gone nowhere
        self._is_refused = False  # Redis said no to it: a new connection would change nothing
        self.is_deaf = True
        metrics.redis_deaf.set(1)

    # -- what happened -----------------------------------------------------------------------------------------

    def on_whole(self) -> None:
        """All subscriptions stand: prove it."""
        self._is_whole = True
        self._heard_at = self._clock()
        self._first = self._number + 1
        self._send()

    def on_lost(self, reason: str = "connection lost") -> None:
        """The hearing connection is gone: deaf until proven otherwise."""
        self._is_whole = False
        self._sent_at = None
        self._set_deaf(True, reason)

    def on_heard(self) -> None:
        """A publication came: no silence, but no proof of our own publish path either."""
        self._heard_at = self._clock()

    def on_canaries(self, payloads: Sequence[bytes]) -> None:
        """Something came on our own channel; any canary sent since we are whole proves, however late it is."""
        self._heard_at = self._clock()
        if any(p.isdigit() and len(p) < 20 and self._first <= int(p) <= self._number for p in payloads):
            self._sent_at = None
            self._set_deaf(False, "canary heard")

    def pause(self) -> None:
        """The node does not read."""
        self.tick()
        self._is_paused = True

    def resume(self) -> None:
        """It reads again; the time between does not count."""
        self.tick()
        self._is_paused = False

    # -- time --------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Judge the time since the last tick, and the silence."""
        now = self._clock()
        elapsed_s, self._ticked_at = now - self._ticked_at, now
        if self.is_deaf:
            self._metrics.redis_deaf_seconds.inc(max(0.0, elapsed_s))
        is_late = elapsed_s > 2 * TICK_S  # the loop stood still; what came meanwhile waits unread behind this call
        uncounted_s = elapsed_s if self._is_paused or is_late else 0.0
        self._heard_at = min(now, self._heard_at + uncounted_s)
        if self._sent_at is not None:
            self._sent_at = min(now, self._sent_at + uncounted_s)
        if self._is_paused or is_late or not self._is_whole:
            return
        if self._sent_at is None:
            if self.is_deaf or now - self._heard_at >= self._silence_s:
                self._send()
        elif now - self._sent_at >= self._deadline_s:
            self._on_missing(now)
        elif self._is_unsent:
            self._put_out()

    def _on_missing(self, now: float) -> None:
        if now - self._heard_at < self._deadline_s:
            self._send()  # others are heard, so this connection lives; only proof of our own path is lacking
            return
        self._sent_at = None
        self._set_deaf(True, "no canary")
        if not self._is_refused:
            self._redial(f"deaf: no canary for {self._deadline_s:g} s")

    def _send(self) -> None:
        self._number += 1
        self._sent_at = self._clock()
        self._is_refused = False
        self._put_out()

    def _put_out(self) -> None:
        self._is_unsent = False
        number = self._number
        self._publish(b"%d" % number).add_done_callback(lambda future: self._on_published(number, future))

    def _on_published(self, number: int, future: "asyncio.Future[int]") -> None:
        if future.cancelled() or number != self._number:
            return
        error = future.exception()
        if isinstance(error, PublishRefused):
            self._is_refused = True
            _log.error("canary refused", error=error.what)
        elif error is not None:
            self._is_unsent = True  # the next tick tries again, under the same deadline

    def _set_deaf(self, is_deaf: bool, reason: str) -> None:
        if is_deaf == self.is_deaf:
            return
        self.is_deaf = is_deaf
        self._metrics.redis_deaf.set(is_deaf)
        if is_deaf:
            _log.warning("deaf", reason=reason)
        else:  # so it begins, too
            _log.info("hearing", reason=reason)
