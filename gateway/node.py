"""Node: connects the local connections and their channels with the broker. Services see it as `NodeServices`.

Rules:
- A node receives its own publications through the broker, as every other node does: nothing is delivered twice or
  in a different order here.
- `delivery.channels` subscribes connections; `delivery.gap_repair` repairs channels with a history after a failure.
"""

import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import structlog

from snorky.gateway._version import __version__
from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.config.limits import ClusterLimits
from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.config.settings import Limits
from snorky.gateway.connection.connection import Connection, Transport
from snorky.gateway.connection.native.direct_sender import DirectSender
from snorky.gateway.connection.storage_quotas import Quotas
from snorky.gateway.connection.waiting_replies import ReliefReport, WaitingReplies
from snorky.gateway.contracts.broker import Broker
from snorky.gateway.contracts.control import ControlLog, LocalControlLog
from snorky.gateway.contracts.directory import Directory
from snorky.gateway.contracts.history import HistoryStore
from snorky.gateway.contracts.hooks import Hooks
from snorky.gateway.contracts.limits import LimitStore, LocalLimitStore
from snorky.gateway.contracts.subscriptions import LocalSubscriptionStore, SubscriptionStore
from snorky.gateway.contracts.webhooks import WebhookReports
from snorky.gateway.delivery.channel_order import Step
from snorky.gateway.delivery.channels import Channels
from snorky.gateway.delivery.fan_out import Fanout
from snorky.gateway.delivery.gap_filler import GapFiller
from snorky.gateway.delivery.gap_repair import COMPARE_EVERY_S, GapRepair
from snorky.gateway.delivery.hub import Hub
from snorky.gateway.delivery.interleaved_reads import InterleavedReads
from snorky.gateway.errors import CloseCode, ConfigurationError
from snorky.gateway.metrics import Metrics
from snorky.gateway.presence.cluster_limiter import ClusterLimiter
from snorky.gateway.presence.ownership import Ownership
from snorky.gateway.presence.roster_sync import RosterSync
from snorky.gateway.presence.roster_view import GRACE_S, Difference
from snorky.gateway.protocol.ws_frames import Dialect
from snorky.gateway.sdk.control import Control
from snorky.gateway.sdk.notices import Notices
from snorky.gateway.sdk.refreshing import Refresher, recheck_all, recheck_by
from snorky.gateway.sdk.registry import ServiceRegistry
from snorky.gateway.sdk.server_subscriptions import ServerSubscriptions
from snorky.gateway.sdk.service import Service
from snorky.gateway.sdk.service_channels import ServiceChannels

__all__ = ["Node", "new_node_id", "node_of"]

_CODES: Final = frozenset(CloseCode)
_log = structlog.get_logger("snorky.node")


class Node:
    """One node of the cluster.

    broker, directory, history_store: started and stopped by the node. Without a directory, services have only topics;
    without a history store, topics have no history. node_id: unique, the same as the directory's; random by default.
    auth: stopped by the node. hooks: questions to the operator's backend; None = it is not asked. control_log: started
    and stopped by the node; None = orders reach only this node. subscription_store (of server-side subscriptions),
    limit_store: stopped by the node; None = only in this process. compare_every_s: how often positions are compared
    with history. grace_s: see `snorky.gateway.presence.roster_view`. direct_sender: how it writes to many connections.
    """

    def __init__(
        self,
        broker: Broker,
        directory: Directory | None = None,
        history_store: HistoryStore | None = None,
        *,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
        node_id: str | None = None,
        auth: Authenticator | None = None,
        hooks: Hooks | None = None,
        control_log: ControlLog | None = None,
        cluster_limits: ClusterLimits | None = None,
        limit_store: LimitStore | None = None,
        subscription_store: SubscriptionStore | None = None,
        compare_every_s: float = COMPARE_EVERY_S,
        grace_s: float = GRACE_S,
        direct_sender: DirectSender | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.direct_sender = direct_sender or DirectSender()
        self._node_id = node_id or new_node_id()
        self._metrics = metrics or Metrics()
        self._auth = auth = auth or Authenticator(metrics=self._metrics)
        self.hooks = hooks  # None = the backend is not asked
        if hooks is not None:
            self._auth.ask_by(hooks)
        self.is_redis_full: Callable[[], bool] = lambda: False  # set by the watcher of Redis' memory
        self.redis_refusal: Callable[[], str] = str
        self.webhooks: WebhookReports | None = None  # set by them; None = there are none
        self.after_interruption: Callable[[], object] = lambda: None  # set by the users of watchlists
        self.cluster_limits = ClusterLimiter(
            cluster_limits or ClusterLimits(),
            limit_store or LocalLimitStore(),
            self._auth,
            self._metrics,
            bytes_min=self.limits.message_max_bytes,
        )
        self.quotas = Quotas(self.limits, self._metrics, self._auth.refusals, self.cluster_limits.quotas)
        self._broker = broker
        self.interleaved_reads = InterleavedReads(broker.read_now)
        self._history_store = history_store
        self._hub = Hub()
        self._repair: GapRepair | None = None
        if history_store is not None:
            filler = GapFiller(
                history_store,
                self._pass_on,
                self._metrics,
                is_congested=self._is_congested,
                portion_max_bytes=self.limits.outbox_max_bytes // 8,
            )
            self._repair = GapRepair(history_store, filler, self._metrics, compare_every_s=compare_every_s)
        self._notices = Notices(self.find_service)
        self._roster_sync: RosterSync | None = None
        if directory is not None:
            self._roster_sync = RosterSync(
                directory, self._tell_differences, self._metrics, is_congested=self._is_congested, grace_s=grace_s
            )
        self._fanout = Fanout(
            self._hub,
            broker,
            self._metrics,
            history_filter=self._repair,
            roster_filter=self._roster_sync,
            payload_max_bytes=self.limits.payload_max_bytes,
            send_many=self.direct_sender.send_many,
        )
        if self._repair is not None:
            self._repair.release = self._fanout.intervals.release
            self._repair.pace.tick = self.interleaved_reads.tick
        self._metrics.fanout_path.labels(self.direct_sender.path).set(1)
        self._auth.on_other_claims = self.recheck
        self._hub.on_removed = self.cluster_limits.counts.leave_channel
        self._fanout.before_delivery = self._auth.grants.catch_up
        self._fanout.end_at_gap = self._notices.end_at_gap
        self._local_channels = Channels(self._hub, broker, self._fanout, self._repair, self._roster_sync)
        self._registries: list[ServiceRegistry] = []
        self._connections: dict[Connection, ServiceRegistry] = {}
        self.channels = ServiceChannels(
            self._hub,
            broker,
            self._fanout,
            self._local_channels,
            history_store,
            limits=self.limits,
            metrics=self._metrics,
            has_presence_events=self._notices.are_wanted,
            is_open=self._connections.__contains__,
            counts=self.cluster_limits.counts,
        )
        self._refresher = Refresher(self._auth, lambda each: self._connections.get(each) or (), self.recheck)
        self.control = Control(
            control_log or LocalControlLog(self._node_id),
            node_id=self._node_id,
            connections=lambda: self.connections,
            channels=self.channels,
            find_service=self.find_service,
            state=lambda: {**self.counts, "isDraining": self.is_draining, "version": __version__},
            subscriptions=ServerSubscriptions(subscription_store or LocalSubscriptionStore(), auth, self.find_service),
            refresh=self._refresher.refresh,
        )
        self._auth.on_identified = self._on_identified
        self._ownership: Ownership | None = None
        if directory is not None:
            self._ownership = Ownership(
                self._node_id, directory, self._notices.of_change, self._connections.__contains__
            )
        replies_max_bytes = max(self.limits.replies_max_bytes, self.limits.outbox_max_bytes)  # of one client alone
        self._waiting = WaitingReplies(replies_max_bytes, ReliefReport(self._metrics))
        self._serials = itertools.count(1)
        self._metrics.subscriptions.set_function(lambda: self._hub.subscriptions)
        self._metrics.channels.set_function(lambda: len(self._hub))
        self._metrics.waiting_reply_bytes.set_function(lambda: self._waiting.total_bytes)
        self.is_draining = False

    @property
    def node_id(self) -> str:
        """This node's id in the cluster."""
        return self._node_id

    @property
    def metrics(self) -> Metrics:
        """The metrics of this node."""
        return self._metrics

    @property
    def auth(self) -> Authenticator:
        """The authenticator of this node's connections."""
        return self._auth

    @property
    def is_ready(self) -> bool:
        """True while this node receives from the broker and is not draining."""
        return not self._broker.is_redis_unverified and not self.is_draining

    @property
    def is_redis_unverified(self) -> bool:
        """True while there is no proof that publications reach this node."""
        return self._broker.is_redis_unverified

    @property
    def connections(self) -> Iterator[Connection]:
        """Open client connections, oldest first."""
        return iter(tuple(self._connections))

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of connections, subscriptions and channels."""
        return {
            "connections": len(self._connections),
            "subscriptions": self._hub.subscriptions,
            "channels": len(self._hub),
        }

    @property
    def rules(self) -> dict[str, Rules[ChannelRule]]:
        """The channel rules of all services, by service name."""
        return {service.name: service.rules for registry in self._registries for service in registry}

    def attach(self, registry: ServiceRegistry) -> None:
        """Add a registry and its services to this node."""
        registry.bind(self, self.limits)
        self._registries.append(registry)
        for service in registry:
            self._take_rules(service)

    def recheck(self, connection: Connection) -> None:
        """End what rules no longer permit to a connection: its claims, or the rules, have changed."""
        self.cluster_limits.counts.recheck(connection)
        recheck_by(self._connections.get(connection) or (), connection)

    async def replace_rules(self, pairs: Sequence[tuple[Service, Service]]) -> None:
        """Replace the rules of services by those of other instances, then end what these no longer permit.

        pairs: each a service of this node, and another instance of its class. All rules are replaced before this first
        waits. Rules about histories reach other nodes and publishers through Redis, within seconds.
        """
        try:
            for service, other in pairs:
                service.adopt_rules(other)
                self._take_rules(service)
        finally:  # also if a service fails, for those before it
            await recheck_all(self.connections, self.recheck)

    def _take_rules(self, service: Service) -> None:
        self.cluster_limits.add_rules(service.rules)
        self._fanout.rules.set_rules(service.name, service.rules)
        if self._history_store is not None:
            self._history_store.set_rules(service.name, service.rules)

    async def start(self) -> None:
        """Begin to connect to the broker; returns at once. `is_ready` turns True when publications arrive."""
        await self._broker.start(self)
        self._auth.start(lambda: self.connections)
        self.control.start()
        self.cluster_limits.start()
        if self._history_store is not None:
            await self._history_store.start()
        if self._repair is not None:
            self._repair.start()
        if self._ownership is not None:
            await self._ownership.start()
        if self._roster_sync is not None:
            self._roster_sync.start()

    def begin_drain(self) -> None:
        """Be unready from now on, and delay no publication."""
        self.is_draining = True
        self._metrics.draining.set(1)
        self._fanout.intervals.drain()

    async def stop(self) -> None:
        """Stop everything. The caller should have closed the connections before."""
        for registry in self._registries:
            await registry.stop()
        await self._auth.stop()
        await self.control.stop()
        await self.cluster_limits.stop()
        if self._repair is not None:
            await self._repair.stop()
        if self._roster_sync is not None:
            await self._roster_sync.stop()
        self._fanout.stop()
        if self._ownership is not None:
            await self._ownership.stop()
        if self._history_store is not None:
            await self._history_store.stop()
        await self._broker.stop()

    # -- connections -------------------------------------------------------------------------------------

    def new_connection(
        self, wire: Transport, dialect: Dialect, *, remote_ip: str = "", outbox_max_bytes: int = 0
    ) -> Connection:
        """Make a connection of this node, inactive until `connect`. outbox_max_bytes: 0 = from the limits."""
        return Connection(
            wire,
            dialect,
            node_id=self._node_id,
            serial=next(self._serials),
            remote_ip=remote_ip,
            outbox_max_bytes=outbox_max_bytes or self.limits.outbox_max_bytes,
            waiting=self._waiting,
        )

    def connect(self, connection: Connection, registry: ServiceRegistry) -> None:
        """Accept a client. Its transport must call `disconnect` later."""
        self._connections[connection] = registry
        self._auth.revocations.hurry()
        if registry.lacks_identity(connection):
            self._auth.expect(connection)
        self._metrics.connections_opened.labels(connection.transport_name).inc()
        self._metrics.connections.labels(connection.transport_name, connection.dialect.name).inc()
        self.cluster_limits.quotas.prepare(connection)
        registry.connected(connection)
        self.control.subscriptions.restore(connection)

    def disconnect(self, connection: Connection, code: int) -> None:
        """Remove a client and its subscriptions. code: the close code of the connection. Idempotent."""
        if (registry := self._connections.pop(connection, None)) is None:
            connection.detach()
            return
        connection.mark_closed()
        self._auth.forget(connection)
        self.control.subscriptions.forget(connection)
        self._local_channels.remove_all(connection)
        if self._ownership is not None:
            self._ownership.forget(connection)
        self._metrics.connections_closed.labels(str(code) if code in _CODES else "other").inc()
        self._metrics.connections.labels(connection.transport_name, connection.dialect.name).dec()
        registry.disconnected(connection)
        self.cluster_limits.quotas.forget(connection)
        connection.detach()

    def _on_identified(self, connection: Connection) -> None:
        if connection in self._connections:
            self.control.subscriptions.restore(connection)

    def find_service(self, name: str) -> Service | None:
        """Return a service of this node, from any of its registries; None = there is none."""
        for registry in self._registries:  # a plain loop: called twice for each member of a node that dies
            if name in registry:
                return registry[name]
        return None

    @property
    def ownership(self) -> Ownership:
        """The owner of this node's roster entries and names. Raises ConfigurationError: there is no directory."""
        if self._ownership is None:
            raise ConfigurationError("this node has no directory: rosters, names, direct messages and tokens need one")
        return self._ownership

    def _tell_differences(self, roster: str, differences: Sequence[Difference], version: int) -> None:
        self._fanout.deliver_notices(roster, self._notices.of_differences(roster, differences), version)

    # -- Listener: called by the broker --------------------------------------------------------------------

    def on_publications(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        """Deliver the publications of one read from the broker."""
        self._fanout.intervals.take(batch)

    def on_interrupted(self) -> None:
        """Begin repairs, since publications may have been missed; channels without a history lose them."""
        _log.warning("the connection to Redis was lost and made again; publications may have been missed")
        if self._repair is not None:
            self._repair.interrupted()
        if self._roster_sync is not None:
            self._roster_sync.interrupted()
        self.after_interruption()

    def _pass_on(self, key: str, steps: Sequence[Step]) -> None:
        self._fanout.pass_on(key, steps)

    def _is_congested(self, key: str) -> bool:
        return (channel := self._hub.get(key)) is not None and channel.is_congested


def node_of(registry: ServiceRegistry) -> Node:
    """Return the node that a registry is attached to. Raises ConfigurationError: none yet."""
    node = registry.cluster
    if not isinstance(node, Node):
        raise ConfigurationError("handlers need a registry that is attached to a node (Node.attach)")
    return node


def new_node_id() -> str:
    """Make a node id of 48 random bits, so that a restarted node is never mistaken for its predecessor."""
    return "n" + secrets.token_hex(6)
