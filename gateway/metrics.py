"""Every Prometheus series of a node, in one place.

Rules: names follow the Prometheus conventions (base units, `_total` on counters); no label has a value that
a peer can choose freely, so the number of series is bounded for any traffic. `command` is the name of
a registered RPC command or "unknown"; `code` is a CloseCode or "other"; `reason`, `door` and `limit` are literals
in our code; `key` and `app` are names from the settings.
"""

import platform
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from snorky.gateway._version import __version__
from snorky.gateway.logs import count_dropped_lines
from snorky.gateway.tallies import DurationsFamily, GaugeFamily, TallyFamily

__all__ = ["Metrics"]

# 0.1 ms .. 10 s: a pass over one client takes 15 us, over 5,000 about 65 ms; on a stalled node it takes seconds.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _LogLines(Collector):
    """The log belongs to the process, not to a node: its count is read when metrics are collected."""

    _labelnames = ()

    def describe(self) -> Iterator[CounterMetricFamily]:
        return self.collect()

    def collect(self) -> Iterator[CounterMetricFamily]:
        text = "Log lines dropped because stderr was not read in time."
        yield CounterMetricFamily("snorky_log_lines_dropped", text, value=count_dropped_lines())


class Metrics:
    """The collectors of one node. One instance per part of a process that counts separately (tests: each node).

    registry: where they are registered; by default a new one.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they add an unused series per counter
        self.registry = registry = CollectorRegistry() if registry is None else registry
        ProcessCollector(registry=registry)  # descriptors and their limit, CPU, memory: alerts use them

        self.log_lines_dropped = _LogLines()
        registry.register(self.log_lines_dropped)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"snorky_{name}", text, labels, registry=registry)

        def tallies(name: str, text: str, *labels: str) -> TallyFamily:
            return TallyFamily(f"snorky_{name}", text, labels, registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"snorky_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"snorky_{name}_seconds", text, labels, registry=registry, buckets=_SECONDS)

        self.build_info = gauge("build_info", "Always 1; the labels hold the versions.", "version", "python")
        self.build_info.labels(__version__, platform.python_version()).set(1)

        self.connections = GaugeFamily(
            "snorky_connections", "Open client connections.", ("transport", "encoding"), registry
        )
        self.connections_limit = gauge("connections_limit", "limits.connections, +Inf if there is no limit.")
        self.connections_opened = tallies("connections_opened_total", "Client connections accepted.", "transport")
        self.connections_closed = tallies("connections_closed_total", "Client connections ended, by code.", "code")
        self.authentications = counter("authentications_total", "Tokens checked, by outcome.", "outcome")
        self.subscription_tokens = counter(
            "subscription_tokens_total", "Subscription tokens checked, by outcome.", "outcome"
        )
        self.handshakes_rejected = counter("handshakes_rejected_total", "Handshakes refused, by reason.", "reason")
        self.refusals = counter("refusals_total", "Refused clients and requests, by door and reason.", "door", "reason")
        self.backend_requests = counter("backend_requests_total", "Accepted requests of backends, by key.", "key")
        self.pusher_requests = counter(
            "pusher_requests_total", "Signed requests of Pusher's HTTP API, by app and outcome.", "app", "outcome"
        )
        self.control_calls = counter("control_calls_total", "Control calls of backends.", "command", "outcome")
        self.slow_consumers_closed = counter("slow_consumers_closed_total", "Connections closed with 4008.")
        self.ping_timeouts = counter("ping_timeouts_total", "Connections closed because pings went unanswered.")
        self.queued_clients = gauge("queued_clients", "Clients that sent more than is processed immediately.")
        self.unread_clients = gauge("unread_clients", "Clients whose input is paused until they read their replies.")
        self.waiting_reply_bytes = gauge("waiting_reply_bytes", "Bytes of replies that clients have not read yet.")
        self.delayed_bytes = gauge("delayed_bytes", "Bytes of publications that wait for the end of their interval.")

        self.subscriptions = gauge("subscriptions", "Subscriptions of local connections.")
        self.channels = gauge("channels", "Channels with a local subscriber.")

        self.messages_received = tallies("messages_received_total", "Messages from clients.", "transport")
        self.received_bytes_family = tallies("received_bytes_total", "Bytes of messages from clients.")
        self.received_bytes = self.received_bytes_family.labels()
        self.publications_published = counter("publications_published_total", "Publications sent by this node.")
        self.publications_received = counter("publications_received_total", "Publications read from the broker.")
        self.unsequenced_publications = counter(
            "unsequenced_publications_total", "Publications without a position (bare PUBLISH)."
        )
        self.deliveries = counter("deliveries_total", "Publications written to connections.")
        self.sent_bytes = counter("sent_bytes_total", "Bytes of publications written to connections, framing included.")
        self.conflated_deliveries = counter(
            "conflated_deliveries_total", "Publications that newer ones replaced before a slow client read them."
        )
        self.drops = counter("drops_total", "Publications not delivered, by reason.", "reason")
        self.gap_repairs = counter(
            "history_gap_repairs_total", "Reads of a channel's history for publications this node missed."
        )
        self.filled_publications = counter("history_filled_publications_total", "Missed publications that these read.")
        self.gaps = counter(
            "history_unrecoverable_gaps_total", "Times that a channel's history lacked what this node missed."
        )
        self.recoveries = counter("recoveries_total", "Clients that recovered a channel, by outcome.", "outcome")
        self.presence_corrections = counter(
            "presence_corrections_total",
            "Presence events sent in place of notices that this node missed.",
            "outcome",
        )
        self.directory_mended = counter(
            "directory_mended_total", "Corrections of this node's members and names in Redis, by reason.", "reason"
        )
        self.fanout_pass = seconds("fanout_pass_duration", "Writing the publications of one read to all subscribers.")
        self.fanout_path = gauge("fanout_path_info", "Always 1; how publications are written to connections.", "path")
        self.delivery_latency = seconds("delivery_latency", "From a node's own publish to the writes to its clients.")

        self.redis_reconnects = counter("redis_reconnects_total", "Reconnects to Redis.", "role")
        self.delivery_unverified_seconds = counter(
            "redis_delivery_unverified_seconds_total", "Time without proof of receiving from Redis."
        )
        self.redis_refusing = gauge("redis_refusing", "1 while Redis refuses writes, though it has memory.")
        self.redis_full = gauge("redis_full", "1 while Redis refuses writes for lack of memory.")
        self.redis_memory_used = gauge("redis_memory_used_ratio", "Of maxmemory; 0 if it is not set or not known.")
        self.delivery_unverified = gauge(
            "redis_delivery_unverified", "1 while there is no proof of receiving from Redis."
        )

        self.library_repairs = counter(
            "redis_library_repairs_total", "Reloads of the function library in Redis, by reason.", "reason"
        )
        for reason in ("missing", "older", "foreign"):
            self.library_repairs.labels(reason)  # at 0, so that an alert also sees the first increase
        self.library_unusable = gauge("redis_library_unusable", "1 while this node cannot load the function library.")
        self.nodes_incompatible = gauge(
            "nodes_incompatible", "Living nodes whose version is not compatible with this node's."
        )
        self.unkept_publications = counter(
            "unkept_publications_total", "Publications without a position on channels that keep a history."
        )

        self.rpc_calls = tallies("rpc_calls_total", "RPC calls, by outcome.", "service", "command", "outcome")
        self.rpc_duration = DurationsFamily(
            "snorky_rpc_duration_seconds", "From request to reply.", ("service",), registry, bounds=_SECONDS
        )
        self.hook_calls = counter(
            "hook_calls_total", "Questions to the backend by HTTP hooks, by outcome.", "operation", "outcome"
        )
        self.hook_duration = seconds("hook_duration", "Requests to the backend by HTTP hooks.", "operation")
        self.hook_requests = gauge("hook_requests", "Requests of HTTP hooks that are in progress.", "operation")
        self.hook_waiting = gauge("hook_waiting", "Questions of HTTP hooks that wait for a request.", "operation")
        self.webhook_events = counter("webhook_events_total", "Events of Pusher's webhooks, by outcome.", "outcome")
        self.webhook_requests = counter(
            "webhook_requests_total", "Requests of Pusher's webhooks to the backend, by outcome.", "outcome"
        )
        self.webhook_events_waiting = gauge(
            "webhook_events_waiting", "Events of Pusher's webhooks that this node is to send."
        )
        self.watched_users = gauge("watched_users", "Users on watchlists of Pusher's clients of this node.")
        self.client_errors = counter("client_errors_total", "Refused input of clients, by code.", "code")
        self.limit_hits = counter("limit_hits_total", "Times a limit was applied.", "limit")
        self.draining = gauge("draining", "1 while the node drains.")
        self.settings_reloads = counter("settings_reloads_total", "Settings read again on SIGHUP.", "outcome")
        for outcome in ("applied", "failed"):
            self.settings_reloads.labels(outcome)  # at 0, so that an alert also sees the first increase
