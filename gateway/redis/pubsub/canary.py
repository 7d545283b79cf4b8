"""Canary: checks that this node receives what is published through Redis.

A connection can stop delivering without any error: a frozen Redis, an unplugged cable, a proxy that dropped its state.
Redis is *unverified* while it is not proven that this node receives. Rules:
- Redis is unverified from the start, and after every lost connection, until a canary published since then has arrived.
- After `silence_s` without a publication, a canary is published through the normal path to a channel that only this
  node subscribes to. If nothing arrives within `deadline_s`, Redis is unverified and both connections are replaced.
- Time during which this node did not read does not count as silence: it was paused, or the event loop was blocked
  (SIGSTOP, a long callback).
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.pubsub.publisher import PublishRefused

__all__ = ["Canary"]

TICK_S = 0.1  # the precision of the deadlines; the cost is negligible

_log = structlog.get_logger("snorky.redis")


class Canary:
    """Watches one broker. The owner must call `tick` every `TICK_S`.

    publish: publishes one canary. redial: replaces the connections; called if it does not arrive. clock: monotonic
    seconds.
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
        self._first = self._number = 0  # numbers of the first canary since `on_whole`, and of the last
        self._sent_at: float | None = None  # when the last one was sent; None: none is pending
        self._is_unsent = False  # the last one's connection failed: it may not have been delivered
        self._is_refused = False  # Redis rejected the last one: a new connection would not help
        self.is_redis_unverified = True
        metrics.delivery_unverified.set(1)

    # -- events ------------------------------------------------------------------------------------------------

    def on_whole(self) -> None:
        """All subscriptions are confirmed: send a canary to prove that publications arrive."""
        self._is_whole = True
        self._heard_at = self._clock()
        self._first = self._number + 1
        self._send()

    def on_lost(self, reason: str = "connection lost") -> None:
        """The subscriber's connection was lost: Redis is unverified until a new canary arrives."""
        self._is_whole = False
        self._sent_at = None
        self._set_unverified(True, reason)

    def on_heard(self) -> None:
        """A publication arrived. It ends the silence, but does not prove that this node can publish."""
        self._heard_at = self._clock()

    def on_canaries(self, payloads: Sequence[bytes]) -> None:
        """Payloads arrived on the canary's channel; any canary sent since `on_whole` is a proof, however late."""
        self._heard_at = self._clock()
        if any(p.isdigit() and len(p) < 20 and self._first <= int(p) <= self._number for p in payloads):
            self._sent_at = None
            self._set_unverified(False, "canary heard")

    def pause(self) -> None:
        """The node stops reading."""
        self.tick()
        self._is_paused = True

    def resume(self) -> None:
        """The node reads again; the pause does not count as silence."""
        self.tick()
        self._is_paused = False

    # -- time --------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Check the silence and the deadline of the pending canary."""
        now = self._clock()
        elapsed_s, self._ticked_at = now - self._ticked_at, now
        if self.is_redis_unverified:
            self._metrics.delivery_unverified_seconds.inc(max(0.0, elapsed_s))
        is_late = elapsed_s > 2 * TICK_S  # the loop was blocked; data received meanwhile is read after this call
        uncounted_s = elapsed_s if self._is_paused or is_late else 0.0
        self._heard_at = min(now, self._heard_at + uncounted_s)
        if self._sent_at is not None:
            self._sent_at = min(now, self._sent_at + uncounted_s)
        if self._is_paused or is_late or not self._is_whole:
            return
        if self._sent_at is None:
            if self.is_redis_unverified or now - self._heard_at >= self._silence_s:
                self._send()
        elif now - self._sent_at >= self._deadline_s:
            self._on_missing(now)
        elif self._is_unsent:
            self._put_out()

    def _on_missing(self, now: float) -> None:
        if now - self._heard_at < self._deadline_s:
            self._send()  # other publications arrive, so the connection works; only our own publish path is unproven
            return
        self._sent_at = None
        self._set_unverified(True, "no canary")
        if not self._is_refused:
            self._redial(f"no canary for {self._deadline_s:g} s")

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

    def _set_unverified(self, is_unverified: bool, reason: str) -> None:
        if is_unverified == self.is_redis_unverified:
            return
        self.is_redis_unverified = is_unverified
        self._metrics.delivery_unverified.set(is_unverified)
        if is_unverified:
            _log.warning("no message received through Redis", reason=reason)
        else:  # also logged once after the start
            _log.info("messages are received through Redis", reason=reason)
