"""Metrics: names by the Prometheus conventions, and a bounded number of series whatever clients send."""

import re
from dataclasses import replace

from prometheus_client import Metric, generate_latest
from structlog.testing import capture_logs

from snorky.gateway import InfoService, Metrics
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import UNLIMITED, House, house, settle
from tests.support.scenarios.quiet_service import bare

UNITS = ("_seconds", "_bytes", "_total", "_info", "_ratio")
COUNTED = {  # gauges of things have no unit; process_ names are the client library's own
    "snorky_connections",
    "snorky_subscriptions",
    "snorky_channels",
    "snorky_redis_delivery_unverified",
    "snorky_redis_full",
    "snorky_redis_library_unusable",
    "snorky_redis_refusing",
    "snorky_nodes_incompatible",
    "snorky_connections_limit",
    "snorky_draining",
    "snorky_queued_clients",
    "snorky_hook_requests",
    "snorky_hook_waiting",
    "snorky_webhook_events_waiting",
    "snorky_unread_clients",
    "snorky_watched_users",
}


def families() -> list[Metric]:
    found = [each for each in Metrics().registry.collect() if each.name.startswith("snorky_")]
    assert len(found) > 20
    return found


def series(built: House) -> int:
    return sum(len(each.samples) for each in built.node.metrics.registry.collect())


def test_names_have_prefix_unit_and_total_as_prometheus_wants_them() -> None:
    for each in families():
        assert re.fullmatch(r"snorky_[a-z]+(_[a-z]+)*", each.name), each.name
        exposed = each.name + "_total" if each.type == "counter" else each.name
        assert exposed.endswith(UNITS) or each.name in COUNTED or _is_histogram_of_time(each), exposed
        assert not re.search(r"_(ms|milliseconds|minutes|kb|kib|count)(_|$)", each.name), each.name
        assert each.documentation.endswith("."), each.name


def _is_histogram_of_time(metric: Metric) -> bool:
    return metric.type == "histogram" and metric.name.endswith("_seconds")


def test_only_counters_are_named_total_and_none_has_a_created_series() -> None:
    text = generate_latest(Metrics().registry).decode()
    assert "_created" not in text
    for each in families():
        if each.type != "counter":
            assert not each.name.endswith("_total"), each.name


def test_labels_are_the_few_that_are_bounded() -> None:
    """One more label is one more thing to bound: consider that first, then add it here."""
    metrics = Metrics()
    labels = {name for each in vars(metrics).values() for name in getattr(each, "_labelnames", ())}
    assert labels == {
        "app", "code", "command", "door", "encoding", "key", "limit", "operation", "outcome", "path", "python",
        "reason", "role", "service", "transport", "version",
    }  # fmt: skip


def test_two_nodes_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.deliveries.inc()
    assert other.registry.get_sample_value("snorky_deliveries_total") == 0


async def test_ten_thousand_random_names_add_no_series() -> None:
    """Commands, services, codes, channels and call ids that a client invents."""
    async with house(PubSubService(), InfoService()) as built:
        client = built.client()

        def send_one_of_each(name: str) -> None:
            client.send("pubsub", {"command": name})
            client.send("pubsub", {"command": "publish", "params": {name: 1}, "callId": name})
            client.send("pubsub", {"command": "publish", "params": {"channel": name, "message": name}})
            client.send("pubsub", {"command": "join", "params": {"channel": name}})
            client.send("pubsub", {"command": "leave", "params": {"channel": name}})
            client.send("pubsub", {"command": "leave", "params": {"channel": name}})
            client.send("gateway", {"command": name})
            client.send(name, {"command": "publish"})
            client.send_bytes(name.encode())
            client.send(name.upper(), 1)

        with capture_logs():
            send_one_of_each("name")
            await settle()
            built.client().leave(4321)
            before = series(built)
            for number in range(10_000):
                send_one_of_each(f"name{number}")
                if number % 100 == 0:
                    await settle()
                    built.client().leave(5000 + number)
            await settle(2000)
        assert series(built) == before
        labels = {"service": "pubsub", "command": "unknown", "outcome": "error"}
        assert built.sample("snorky_rpc_calls_total", **labels) == 10_001
        assert built.sample("snorky_client_errors_total", code="unknown_service") == 10_001
        assert built.sample("snorky_connections_closed_total", code="other") == 101


async def test_a_hundred_thousand_channels_add_no_series() -> None:
    limits = replace(UNLIMITED, channels_per_connection=200_000)
    async with house(PubSubService(), limits=limits) as built:
        client = built.client()
        await built.node.channels.subscribe(client.connection, "pubsub", "first", bare)
        before = series(built)
        for number in range(100_000):
            await built.node.channels.subscribe(client.connection, "pubsub", f"channel-{number}", bare)
        assert built.sample("snorky_channels") == 100_001
        assert series(built) == before


async def test_alias_is_counted_under_the_name_of_its_command() -> None:
    async with house(PubSubService()) as built:
        client = built.client()
        for command in ("join", "subscribe"):
            client.send("pubsub", {"command": command, "params": {"channel": command}})
        await client.received(2)
        labels = {"service": "pubsub", "command": "subscribe", "outcome": "ok"}
        assert built.sample("snorky_rpc_calls_total", **labels) == 2
        assert built.sample("snorky_rpc_duration_seconds_count", service="pubsub") == 2
