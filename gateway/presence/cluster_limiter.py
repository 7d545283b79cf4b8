"""ClusterLimiter: the limits over all nodes, as one node applies them."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.config.rules.channel_rules import ChannelRule
from snorky.gateway.connection.cluster_quotas import ClusterQuotas
from snorky.gateway.connection.cluster_rates import ClusterRates
from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.publish_limits import PublishLimits
from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.contracts.limits import LimitStore
from snorky.gateway.metrics import Metrics
from snorky.gateway.presence.cluster_counts import ClusterCounts
from snorky.gateway.presence.rate_exchange import RateExchange

__all__ = ["ClusterLimiter"]


class Identities(Protocol):
    """The part of an authenticator that is used here. Called before a connection gets an identity, and after that."""

    refusals: Refusals
    before_identity: Callable[[Connection, str], Awaitable[None]]
    after_identity: Callable[[Connection], object]


class ClusterLimiter:
    """counts: connections and subscriptions. rates: messages. publishes: publications. quotas: stored bytes.

    bytes_min: of the largest message. Without any limit nothing is started, and `store` is not used.
    """

    def __init__(
        self, limits: ClusterLimits, store: LimitStore, auth: Identities, metrics: Metrics, *, bytes_min: int
    ) -> None:
        self._store = store
        self._is_used = limits.are_set
        self._is_started = False
        self.counts = ClusterCounts(limits, store, metrics, auth.refusals)
        self.rates = ClusterRates(limits, bytes_min=bytes_min)
        self.publishes = PublishLimits(limits, self.rates, metrics, auth.refusals)
        self.quotas = ClusterQuotas(
            store, per_identity=limits.stored_bytes_per_identity, per_ip=limits.stored_bytes_per_ip
        )
        self._exchange = RateExchange(self.rates, store)
        auth.before_identity = self.counts.enter_identity
        auth.after_identity = self.quotas.prepare

    def add_rules(self, rules: Iterable[ChannelRule]) -> None:
        """Apply the limits of channels too, also of rules that are new while the node runs."""
        if not self._is_used and any(rule.publishes_per_s or rule.subscribers_max for rule in rules):
            self._is_used = True
            if self._is_started:
                self.start()

    def start(self) -> None:
        """Begin to count and to exchange; returns at once."""
        self._is_started = True
        if self._is_used:
            self._store.start(self._on_lost)
            self._exchange.start()
            self.quotas.start()

    async def stop(self) -> None:
        """Stop, and free what is counted here, if Redis answers. Idempotent."""
        if self._is_used:
            await self._exchange.stop()
            await self.quotas.stop()
            await self._store.stop()

    def forget(self, connection: Connection) -> None:
        """Give back what an ended connection counts. Idempotent."""
        self.counts.forget(connection)
        self.quotas.forget(connection)

    def _on_lost(self, limit: str, name: str, units: int) -> None:
        if not self.quotas.on_lost(limit, name, units):
            self.counts.on_lost(limit, name, units)
