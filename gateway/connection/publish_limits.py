"""PublishLimits: the size of messages that clients publish, and how often they publish, by identity and by channel."""

from collections import OrderedDict
from typing import Any

from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.config.rules.channel_rules import ChannelRule
from snorky.gateway.connection.cluster_rates import REMEMBERED, ClusterBucket, ClusterRates
from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.errors import LimitExceeded
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.codec import json_size

__all__ = ["PublishLimits"]


class PublishLimits:
    """The limits of one node."""

    def __init__(self, limits: ClusterLimits, rates: ClusterRates, metrics: Metrics, refusals: Refusals) -> None:
        self._per_identity = limits.publishes_per_s_per_identity
        self._rates = rates
        self._identities: OrderedDict[str, ClusterBucket] = OrderedDict()  # those that published last
        self._channels: OrderedDict[str, ClusterBucket] = OrderedDict()
        self._metrics = metrics
        self._refusals = refusals

    @property
    def are_set(self) -> bool:
        """True if every publication of a client must be checked, also where no rule has a limit."""
        return self._per_identity > 0

    def check(self, client: Connection, key: str, message: Any, rule: ChannelRule) -> None:
        """Count one publication of a client. key: of the channel. Raises LimitExceeded: nothing was counted."""
        if rule.message_max_bytes and json_size(message) > rule.message_max_bytes:
            self._note("channel_message_max_bytes", client)
            text = f"A message on this channel takes at most {rule.message_max_bytes} bytes"
            raise LimitExceeded("channel_message_max_bytes", text, code="too_large")
        bucket = other = None
        if self._per_identity and client.identity is not None:
            bucket = self._identities.get(client.identity)
            if bucket is None or bucket.credit < 1.0:
                limit = "cluster_publishes_per_identity"
                bucket = self._borrow(self._identities, limit, client.identity, self._per_identity, client)
        if rule.publishes_per_s:
            other = self._channels.get(key)
            if other is None or other.credit < 1.0:
                other = self._borrow(self._channels, "channel_publishes_per_s", key, rule.publishes_per_s, client)
            other.credit -= 1.0
        if bucket is not None:
            bucket.credit -= 1.0

    def _borrow(
        self, known: "OrderedDict[str, ClusterBucket]", limit: str, name: str, per_s: float, client: Connection
    ) -> ClusterBucket:
        """Return a name's bucket with a credit of one publication. Raises LimitExceeded."""
        bucket = known.get(name)
        if bucket is None or bucket.limit_per_s != per_s:
            bucket = known[name] = self._rates.bucket(limit, name, per_s)
            if len(known) > REMEMBERED:
                known.popitem(last=False)
        known.move_to_end(name)
        wait_ms = 0 if bucket.credit >= 1.0 else bucket.borrow()
        if wait_ms:
            self._note(limit, client)
            raise LimitExceeded(limit, "Too many publications", code="rate_limited", retry_after_ms=wait_ms)
        return bucket

    def _note(self, limit: str, client: Connection) -> None:
        self._metrics.limit_hits.labels(limit).inc()
        self._refusals.note("limit", limit, address=client.remote_ip, identity=client.identity)
