"""Quotas: how much clients may have stored in Redis, which all nodes share.

Rules:
- What a client stores is counted as bytes when it is written: idempotency keys, messages of channels that keep a
  history, places in rosters, names. It is counted by the most that it may take, also where it takes the place of
  something older.
- The quota is its identity's. Clients without one share that of their address (IPv6: of the /64).
- A quota that is used up is full again after STORED_S: as long as Redis keeps an idempotency key, and by default a
  message. So one quota holds at most twice its bytes in Redis at a time.
- What was certainly not stored, for Redis refused the write or had no place for it, is given back. What may have been
  stored stays counted.
- The quotas used last are known, REMEMBERED of them.
"""

import asyncio
from collections import OrderedDict
from time import monotonic
from typing import Any, Final

from gateway.connection import Connection
from gateway.errors import BrokerUnavailable, LimitExceeded
from gateway.limiter import Bucket
from gateway.metrics import Metrics
from gateway.refusals import Refusals
from gateway.settings import Limits
from gateway.shares import site_of

__all__ = ["CHANNEL_BYTES", "ENTRY_BYTES", "KEY_BYTES", "MESSAGE_BYTES", "Charge", "Quotas", "was_stored"]

STORED_S: Final = 300.0
REMEMBERED: Final = 10_000
CHANNELS_MAX: Final = 64  # of one quota, that are known to exist already
# What Redis takes beside the bytes themselves (tests/cluster/test_stored_bytes.py measures)
KEY_BYTES: Final = 256  # an idempotency key
MESSAGE_BYTES: Final = 128  # an entry of a stream, with its tags
CHANNEL_BYTES: Final = 5_120  # a stream and its state
ENTRY_BYTES: Final = 1_024  # a place in a roster or a name, in the index of its node too


class _Quota:
    """What one identity or address may still store. channels: those that it has written to lately."""

    __slots__ = ("bucket", "channels")

    def __init__(self, max_bytes: int, now_s: float) -> None:
        self.bucket = Bucket(max_bytes / STORED_S, float(max_bytes), now_s)
        self.channels: OrderedDict[str, None] = OrderedDict()


class Charge:
    """What was counted for one write. channel: the one that this write was thought to begin."""

    __slots__ = ("_channel", "_quota", "_size")

    def __init__(self, quota: _Quota | None, size: int, channel: str | None) -> None:
        self._quota = quota
        self._size = size
        self._channel = channel

    def give_back(self) -> None:
        """Know that nothing was stored. Idempotent."""
        quota, self._quota = self._quota, None
        if quota is None:
            return
        quota.bucket.tokens = min(quota.bucket.burst, quota.bucket.tokens + self._size)
        if self._channel is not None:
            quota.channels.pop(self._channel, None)

    def settle(self, write: "asyncio.Future[Any]") -> None:
        """Give it back if a write has failed, and nothing was stored; to be called when it is done."""
        error = None if write.cancelled() else write.exception()
        if error is not None and not was_stored(error):
            self.give_back()


def was_stored(error: BaseException) -> bool:
    """Tell if a write that failed may have been stored all the same."""
    return not (isinstance(error, LimitExceeded) or (isinstance(error, BrokerUnavailable) and error.is_undone))


class Quotas:
    """Those of one node."""

    def __init__(self, limits: Limits, metrics: Metrics, refusals: Refusals) -> None:
        self._per_identity = limits.stored_bytes_per_identity
        # with no limit of connections per address an address says nothing about who connects
        self._per_ip = limits.stored_bytes_per_ip if limits.connections_per_ip else 0
        self._metrics = metrics
        self._refusals = refusals
        self._quotas: OrderedDict[tuple[str, str], _Quota] = OrderedDict()

    def charge(self, client: Connection, size: int, channel: str | None = None) -> Charge:
        """Count what a client is about to store. channel: the key of one that keeps a history, which may begin.

        The charge is to be given back if nothing was stored. Raises LimitExceeded: not now; nothing was counted.
        """
        if client.identity is not None:
            limit, name, max_bytes = "stored_bytes_per_identity", client.identity, self._per_identity
        else:
            limit, name, max_bytes = "stored_bytes_per_ip", site_of(client.remote_ip), self._per_ip
        if not max_bytes or not name:
            return Charge(None, 0, None)
        now_s = monotonic()
        quota = self._quota(limit, name, max_bytes, now_s)
        bucket = quota.bucket
        bucket.refill(now_s)
        is_new = channel is not None and channel not in quota.channels
        if is_new:
            size += CHANNEL_BYTES
        size = min(size, max_bytes)  # a quota that is smaller than one message lets that through when it is full
        if bucket.tokens < size:
            self._metrics.limited.labels(limit).inc()
            self._refusals.note("limit", limit, address=client.remote_ip, identity=client.identity)
            text = "Too much is being stored for this client: store less, or later"
            raise LimitExceeded(limit, text, code="rate_limited", retry_after_ms=bucket.wait_ms(size))
        bucket.tokens -= size
        if channel is not None:
            quota.channels[channel] = None
            quota.channels.move_to_end(channel)
            if len(quota.channels) > CHANNELS_MAX:
                quota.channels.popitem(last=False)
        return Charge(quota, size, channel if is_new else None)

    def _quota(self, limit: str, name: str, max_bytes: int, now_s: float) -> _Quota:
        quota = self._quotas.get((limit, name))
        if quota is None:
            quota = self._quotas[limit, name] = _Quota(max_bytes, now_s)
            if len(self._quotas) > REMEMBERED:
                self._quotas.popitem(last=False)
        self._quotas.move_to_end((limit, name))
        return quota
