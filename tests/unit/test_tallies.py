"""Tallies: their samples are those of the client library's own counters, gauges and histograms."""

import math

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from snorky.gateway.tallies import DurationsFamily, GaugeFamily, TallyFamily

BOUNDS = (0.0001, 0.00025, 1.0, 10.0)


def test_the_exposition_is_the_library_s() -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counters = TallyFamily("a_total", "A.", ("x", "y"), ours), Counter("a_total", "A.", ("x", "y"), registry=theirs)
    gauges = GaugeFamily("b", "B.", ("x",), ours), Gauge("b", "B.", ("x",), registry=theirs)
    seconds = (
        DurationsFamily("c_seconds", "C.", ("x",), ours, bounds=BOUNDS),
        Histogram("c_seconds", "C.", ("x",), registry=theirs, buckets=BOUNDS),
    )
    assert generate_latest(ours) == generate_latest(theirs)
    for each in counters:
        each.labels("1", "2").inc()
        each.labels("1", "2").inc(5)
        each.labels("1", 'a"b').inc()
    for gauge in gauges:
        gauge.labels("1").inc()
        gauge.labels("2").inc()
        gauge.labels("2").dec()
    for histogram in seconds:
        for value in (0.0, 0.0001, 0.0002, 0.5, 1.0, 1.5, 11.0):
            histogram.labels("1").observe(value)
    assert generate_latest(ours) == generate_latest(theirs)
    assert ours.get_sample_value("c_seconds_bucket", {"x": "1", "le": "+Inf"}) == 7
    assert math.isclose(ours.get_sample_value("c_seconds_sum", {"x": "1"}) or 0, 14.0003)


def test_a_wrong_number_of_labels_is_an_error() -> None:
    registry = CollectorRegistry()
    with pytest.raises(ValueError, match="labels"):
        TallyFamily("a_total", "A.", ("x",), registry).labels()
    with pytest.raises(ValueError, match="labels"):
        DurationsFamily("c_seconds", "C.", ("x",), registry, bounds=BOUNDS).labels("1", "2")


def test_a_name_is_registered_once() -> None:
    registry = CollectorRegistry()
    TallyFamily("a_total", "A.", (), registry)
    with pytest.raises(ValueError, match="Duplicated"):
        TallyFamily("a_total", "A.", (), registry)
