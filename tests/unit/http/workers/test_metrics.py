import pytest
from prometheus_client.parser import text_string_to_metric_families

from snorky.gateway.http.workers.metrics import Totals
from snorky.gateway.metrics import Metrics


def text(connections: float, deliveries: float, unverified: int = 0) -> str:
    return f"""# HELP snorky_connections Open.
# TYPE snorky_connections gauge
snorky_connections{{transport="websocket"}} {connections}
# HELP snorky_deliveries_total Written.
# TYPE snorky_deliveries_total counter
snorky_deliveries_total {deliveries}
# HELP snorky_redis_delivery_unverified Redis is unverified.
# TYPE snorky_redis_delivery_unverified gauge
snorky_redis_delivery_unverified {unverified}
"""


def samples(totals: Totals) -> dict[str, float]:
    families = text_string_to_metric_families(totals.render().decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_workers_are_summed():
    totals = Totals()
    totals.take("a", text(3, 100))
    totals.take("b", text(4, 10))
    assert samples(totals)["snorky_connections"] == 7
    assert samples(totals)["snorky_deliveries_total"] == 110


def test_unverified_workers_count_as_one_unverified_gateway():
    totals = Totals()
    totals.take("a", text(0, 0, unverified=1))
    totals.take("b", text(0, 0, unverified=0))
    assert samples(totals)["snorky_redis_delivery_unverified"] == 1
    totals.take("b", text(0, 0, unverified=1))
    assert samples(totals)["snorky_redis_delivery_unverified"] == 1


def test_counter_outlives_its_worker_and_gauge_does_not():
    totals = Totals()
    totals.take("a", text(3, 100))
    totals.take("b", text(4, 10))
    totals.end("a")
    assert samples(totals)["snorky_deliveries_total"] == 110
    assert samples(totals)["snorky_connections"] == 4
    totals.take("a.2", text(0, 1))
    assert samples(totals)["snorky_deliveries_total"] == 111


def test_text_that_is_none_changes_nothing():
    totals = Totals()
    totals.take("a", text(3, 100))
    with pytest.raises(ValueError):
        totals.take("a", "snorky_connections {{{ 1")
    assert samples(totals)["snorky_connections"] == 3


def test_real_metrics_are_unchanged():
    from prometheus_client import generate_latest

    metrics = Metrics()
    metrics.fanout_pass.observe(0.003)
    metrics.client_errors.labels("invalid").inc(2)
    exposed = generate_latest(metrics.registry).decode()
    totals = Totals()
    totals.take("a", exposed)
    once = totals.render().decode()
    totals.take("b", exposed)
    twice = totals.render().decode()
    assert set(once.splitlines()) >= {line for line in exposed.splitlines() if line.startswith("snorky_")}
    assert 'snorky_client_errors_total{code="invalid"} 4.0' in twice
    assert 'snorky_fanout_pass_duration_seconds_bucket{le="0.005"} 2.0' in twice
    assert "snorky_fanout_pass_duration_seconds_sum 0.006" in twice
