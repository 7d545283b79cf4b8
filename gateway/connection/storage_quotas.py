"""Quotas: how many bytes clients may store in Redis, which all nodes share.

Rules:
- Each write of a client is counted in bytes: idempotency keys, messages of channels with a history, the state of a
  history that a client may begin, roster entries, names. The count is the most that the write may take, even if it
  replaces an older value.
- The quota belongs to an identity. Clients without one share the quota of their address (IPv6: of the /64).
- A used-up quota is full again after STORED_S: as long as Redis keeps an idempotency key, and by default a
  message. So the data of one quota in Redis is at most twice its size at a time.
- A write that was certainly not stored, because Redis refused it or had no room, is refunded. A write whose outcome is
  unknown stays counted.
- The REMEMBERED quotas used last are kept in memory.
- A write also counts against the quota over all nodes, if there is one (`cluster_quotas`).
"""

import asyncio
from collections import OrderedDict
from time import monotonic
from typing import Any, Final, NoReturn

from snorky.gateway.config.settings import Limits
from snorky.gateway.connection.cluster_quotas import ClusterQuotas, Taken
from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.rate_limiter import Bucket
from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.connection.shared_limits import site_of
from snorky.gateway.errors import BrokerUnavailable, LimitExceeded
from snorky.gateway.metrics import Metrics

__all__ = [
    "CHANNEL_BYTES",
    "ENTRY_BYTES",
    "KEY_BYTES",
    "MESSAGE_BYTES",
    "STATE_BYTES",
    "Charge",
    "Quotas",
    "was_stored",
]

STORED_S: Final = 300.0
REMEMBERED: Final = 10_000
CHANNELS_MAX: Final = 64  # channels per quota that are known to exist already
# What Redis needs in addition to the bytes themselves (tests/cluster/test_stored_bytes.py measures it)
KEY_BYTES: Final = 256  # an idempotency key
MESSAGE_BYTES: Final = 128  # an entry of a stream, with its tags
CHANNEL_BYTES: Final = 5_120  # a stream and its state
STATE_BYTES: Final = 512  # the state of a history that has no entry yet
ENTRY_BYTES: Final = 1_024  # a roster entry or a name, including its node's index


class _Quota:
    """What one identity or address may still store. channels: those it has recently written to."""

    __slots__ = ("bucket", "channels")

    def __init__(self, max_bytes: int, now_s: float) -> None:
        self.bucket = Bucket(max_bytes / STORED_S, float(max_bytes), now_s)
        self.channels: OrderedDict[str, None] = OrderedDict()


class Charge:
    """The bytes counted for one write. channel: a channel that this write was expected to create."""

    __slots__ = ("_channel", "_of_all", "_quota", "_size")

    def __init__(self, quota: _Quota | None, size: int, channel: str | None, of_all: Taken | None = None) -> None:
        self._quota = quota
        self._of_all = of_all
        self._size = size
        self._channel = channel

    def give_back(self) -> None:
        """Refund the charge: nothing was stored. Idempotent."""
        quota, self._quota = self._quota, None
        of_all, self._of_all = self._of_all, None
        if of_all is not None:
            of_all.refund(self._size)
        if quota is None:
            return
        quota.bucket.tokens = min(quota.bucket.burst, quota.bucket.tokens + self._size)
        if self._channel is not None:
            quota.channels.pop(self._channel, None)

    def settle(self, write: "asyncio.Future[Any]") -> None:
        """Refund the charge if a write failed and nothing was stored; call it when the write is done."""
        error = None if write.cancelled() else write.exception()
        if error is not None and not was_stored(error):
            self.give_back()


def was_stored(error: BaseException) -> bool:
    """Return True if a failed write may have been stored nevertheless."""
    return not (isinstance(error, LimitExceeded) or (isinstance(error, BrokerUnavailable) and error.is_undone))


class Quotas:
    """The quotas of one node. of_all: those over all nodes."""

    def __init__(
        self, limits: Limits, metrics: Metrics, refusals: Refusals, of_all: ClusterQuotas | None = None
    ) -> None:
        self._of_all = of_all
        self._per_identity = limits.stored_bytes_per_identity
        # without a limit of connections per address, addresses do not identify clients
        self._per_ip = limits.stored_bytes_per_ip if limits.connections_per_ip else 0
        self._metrics = metrics
        self._refusals = refusals
        self._quotas: OrderedDict[tuple[str, str], _Quota] = OrderedDict()

    def charge(self, client: Connection, size: int, channel: str | None = None) -> Charge:
        """Count a client's write before it is sent. channel: the key of a channel with a history, which may be new.

        The caller must refund the charge if nothing was stored. Raises LimitExceeded: not now; nothing was counted.
        BrokerUnavailable: likewise, while this node is cut off from Redis and there is a quota over all nodes.
        """
        if client.identity is not None:
            limit, name, max_bytes = "stored_bytes_per_identity", client.identity, self._per_identity
        else:
            limit, name, max_bytes = "stored_bytes_per_ip", site_of(client.remote_ip), self._per_ip
        if not max_bytes or not name:
            return Charge(None, size, None, self._spend(client, size))
        now_s = monotonic()
        quota = self._quota(limit, name, max_bytes, now_s)
        bucket = quota.bucket
        bucket.refill(now_s)
        is_new = channel is not None and channel not in quota.channels
        if is_new:
            size += CHANNEL_BYTES
        size = min(size, max_bytes)  # if the quota is smaller than one message, a full quota admits the message
        if bucket.tokens < size:
            self._refuse(limit, client, bucket.wait_ms(size))
        of_all = self._spend(client, size)
        bucket.tokens -= size
        if channel is not None:
            quota.channels[channel] = None
            quota.channels.move_to_end(channel)
            if len(quota.channels) > CHANNELS_MAX:
                quota.channels.popitem(last=False)
        return Charge(quota, size, channel if is_new else None, of_all)

    def _spend(self, client: Connection, size: int) -> Taken | None:
        """Spend bytes of the quota over all nodes. Raises LimitExceeded, BrokerUnavailable."""
        if self._of_all is None:
            return None
        of_all, wait_ms = self._of_all.spend(client, size)
        if wait_ms:
            self._refuse(self._of_all.limit_of(client), client, wait_ms)
        return of_all

    def _refuse(self, limit: str, client: Connection, wait_ms: int) -> NoReturn:
        self._metrics.limit_hits.labels(limit).inc()
        self._refusals.note("limit", limit, address=client.remote_ip, identity=client.identity)
        text = "Too much is being stored for this client: store less, or later"
        raise LimitExceeded(limit, text, code="rate_limited", retry_after_ms=wait_ms)

    def _quota(self, limit: str, name: str, max_bytes: int, now_s: float) -> _Quota:
        quota = self._quotas.get((limit, name))
        if quota is None:
            quota = self._quotas[limit, name] = _Quota(max_bytes, now_s)
            if len(self._quotas) > REMEMBERED:
                self._quotas.popitem(last=False)
        self._quotas.move_to_end((limit, name))
        return quota
