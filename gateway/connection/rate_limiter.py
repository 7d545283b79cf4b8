"""Limiter: how much one connection may send, and how many invalid messages it may send.

Rules:
- A message takes one token and its size in bytes from three shares: its connection's, its address's and its
  identity's. The last two outlive the connection: a client that reconnects gets no fresh burst.
- A limiter borrows some messages and bytes in advance, from all its shares or from none, so that most messages check
  neither bucket nor clock. When the connection ends, unused borrowed tokens are lost.
- Frames that are not a whole message (pings, pongs, fragments) take tokens of a third kind.
- A refused message takes nothing. The reported wait is that of the bucket which refused it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from time import monotonic
from typing import Final

__all__ = ["Bucket", "Limiter", "Rates", "Share"]

WINDOW_S: Final = 60.0
_WHOLE: Final = 1.0 - 1e-6  # of a token: many small refills do not add up exactly
REFUSED_PER_BURST: Final = 10  # a client that reconnects with 1,000 channels is often refused without any abuse
BORROWED_MESSAGES: Final = 16.0
BORROWED_BYTES: Final = 16_384.0


@dataclass(frozen=True, slots=True)
class Rates:
    """Allowed rates in the long run, and bursts."""

    messages_per_s: float
    messages_burst: float
    bytes_per_s: float = inf
    bytes_burst: float = inf
    frames_per_s: float = inf
    frames_burst: float = inf

    def times(self, factor: float) -> "Rates":
        """Return the rates of this many connections together."""
        return Rates(
            self.messages_per_s * factor,
            self.messages_burst * factor,
            self.bytes_per_s * factor,
            self.bytes_burst * factor,
            self.frames_per_s * factor,
            self.frames_burst * factor,
        )


class Bucket:
    """A token bucket. The caller passes the time, monotonic seconds."""

    __slots__ = ("_at_s", "_per_s", "_rejected_tokens", "burst", "tokens")

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        self._per_s = per_s
        self.burst = self.tokens = burst
        self._at_s = now_s
        self._rejected_tokens = 0.0  # tokens of rejected messages whose retry_after has not elapsed yet

    def refill(self, now_s: float) -> None:
        """Add the tokens for the time that has passed."""
        elapsed_s, self._at_s = now_s - self._at_s, now_s
        if elapsed_s > 0:  # an unlimited rate must not be multiplied by zero: the result is NaN
            refill = elapsed_s * self._per_s
            self.tokens = min(self.burst, self.tokens + refill)
            self._rejected_tokens = max(0.0, self._rejected_tokens - refill)

    @property
    def spare(self) -> float:
        """Tokens that may be borrowed in advance; the lower half of the bucket is kept for messages sent now."""
        return self.tokens - self.burst / 2 if self.burst < inf else inf

    def wait_ms(self, tokens: float) -> int:
        """Refuse a request for tokens; returns the wait. Each refusal lengthens it, so that retries are spread out."""
        self._rejected_tokens += tokens
        return max(1, ceil(round((self._rejected_tokens - self.tokens) / self._per_s * 1000, 3)))


class _Window:
    """Counts of invalid and refused messages within a minute."""

    __slots__ = ("_at_s", "bad", "refused", "refused_bytes")

    def __init__(self) -> None:
        self._at_s = monotonic()
        self.bad = self.refused = self.refused_bytes = 0

    def turn(self) -> None:
        """Reset the counts if the minute is over."""
        now_s = monotonic()
        if now_s - self._at_s > WINDOW_S:
            self._at_s, self.bad, self.refused, self.refused_bytes = now_s, 0, 0, 0


class Share:
    """The allowance of one connection, or of all connections of one address or identity together.

    kind: suffix of its limits' names in metrics: "per_s" (a connection's), "per_ip", "per_identity".
    """

    __slots__ = (
        "__weakref__",
        "_frames",
        "_rates",
        "_window",
        "bytes",
        "chunk",
        "chunk_bytes",
        "kind",
        "messages",
        "refused_bytes_max",
        "refused_max",
    )

    def __init__(self, kind: str, rates: Rates) -> None:
        now_s = monotonic()
        self.kind = kind
        self._rates = rates
        self.messages = Bucket(rates.messages_per_s, rates.messages_burst, now_s)
        self.bytes = Bucket(rates.bytes_per_s, rates.bytes_burst, now_s)
        # borrowing in small chunks: the first connection must not take all of a small burst
        self.chunk = max(1.0, min(BORROWED_MESSAGES, rates.messages_burst / 64))
        self.chunk_bytes = min(BORROWED_BYTES, rates.bytes_burst / 64)
        self.refused_max, self.refused_bytes_max = rates.messages_burst * REFUSED_PER_BURST, rates.bytes_burst
        self._frames: Bucket | None = None  # these two are created on first use: most connections need neither
        self._window: _Window | None = None

    @property
    def frames(self) -> Bucket:
        """Tokens for frames that are not a whole message."""
        if self._frames is None:
            self._frames = Bucket(self._rates.frames_per_s, self._rates.frames_burst, monotonic())
        return self._frames

    @property
    def window(self) -> _Window:
        """Counts of invalid and refused messages in the last minute."""
        if self._window is None:
            self._window = _Window()
        return self._window


class Limiter:
    """What one connection may send now; created at its first message.

    rates: of the connection. client_errors_per_minute: tolerated invalid messages; of messages sent too fast,
    REFUSED_PER_BURST times the burst are tolerated. shares: of its address and of its identity, `identity`.
    """

    __slots__ = ("_bad_max", "_credit", "_credit_bytes", "_own", "_refused_by", "_shares", "identity", "limit")

    def __init__(
        self,
        rates: Rates,
        client_errors_per_minute: int,
        shares: Sequence[Share] = (),
        *,
        identity: str | None = None,
    ) -> None:
        self._bad_max = client_errors_per_minute
        self._own = self._refused_by = Share("per_s", rates)
        self.limit = ""  # the limit that refused last
        self._credit = self._credit_bytes = 0.0
        self.share(shares, identity)

    def share(self, shares: Sequence[Share], identity: str | None) -> None:
        """Set the shares to borrow from, in addition to its own."""
        self._shares = (self._own, *shares)
        self.identity = identity

    def take(self, size: int = 0) -> int:
        """Take one message of this size. Returns 0, or the ms until it may be sent: then nothing was taken.

        In that case `limit` is the limit that refused it.
        """
        if (self._credit < _WHOLE or self._credit_bytes < size) and (wait_ms := self._borrow(size)):
            return wait_ms
        self._credit -= 1.0
        self._credit_bytes -= size
        return 0

    def take_frame(self) -> bool:
        """Take one frame that is not a whole message; False if it exceeds a limit, whose name is then in `limit`."""
        now_s = monotonic()
        for share in self._shares:
            share.frames.refill(now_s)
            if share.frames.tokens < _WHOLE:
                self._refuse("frames", share)
                return False
        for share in self._shares:
            share.frames.tokens -= 1.0
        return True

    def note_refused(self, size: int = 0) -> bool:
        """Count one message that was sent too fast; True if there were too many within a minute."""
        share = self._refused_by
        share.window.turn()
        share.window.refused += 1
        share.window.refused_bytes += size
        return share.window.refused > share.refused_max or share.window.refused_bytes > share.refused_bytes_max

    def note_bad(self) -> bool:
        """Count one invalid message; True if there were too many within a minute."""
        window = self._own.window
        window.turn()
        window.bad += 1
        return window.bad > self._bad_max

    def _borrow(self, size: int) -> int:
        """Borrow from every share, or from none. Returns 0, or the ms to wait."""
        now_s = monotonic()
        wanted = 0.0 if self._credit >= _WHOLE else 1.0
        wanted_bytes = 0.0 if self._credit_bytes >= size else size - self._credit_bytes
        count, total = inf, inf
        for share in self._shares:
            messages, sizes = share.messages, share.bytes
            messages.refill(now_s)
            sizes.refill(now_s)
            if messages.tokens < wanted * _WHOLE:
                self._refuse("messages", share)
                return messages.wait_ms(wanted)
            if sizes.tokens < wanted_bytes:
                self._refuse("bytes", share)
                return sizes.wait_ms(wanted_bytes)
            count = min(count, share.chunk, max(wanted, messages.spare))
            total = min(total, wanted_bytes + share.chunk_bytes, max(wanted_bytes, sizes.spare))
        count, total = count if wanted else 0.0, total if wanted_bytes else 0.0
        for share in self._shares:
            share.messages.tokens -= count
            share.bytes.tokens -= total
        self._credit += count
        self._credit_bytes += total
        return 0

    def _refuse(self, what: str, share: Share) -> None:
        self.limit, self._refused_by = f"{what}_{share.kind}", share
