from snorky.gateway.redis.directory.node_states import NodeState
from snorky.gateway.runtime.commands.stats import Meter


def node(name="n1", **state):
    return NodeState(name, {"connections": 0, "deliveries_total": 0, "sent_bytes_total": 0, **state})


def test_rate_is_of_the_time_between_two_changes():
    meter = Meter()
    meter.look([node(deliveries_total=100)], 10.0)
    meter.look([node(deliveries_total=100)], 11.0)  # no renewal in between
    meter.look([node(deliveries_total=300)], 12.0)
    assert meter.rate("n1", "deliveries_total") == 100.0


def test_rate_is_divided_by_the_time_between_the_samples_and_not_between_the_reads():
    """At a steady 1,753 deliveries/s three runs showed 1,374, 2,812 and 1,439."""
    for late_s in (0.0, 0.4, 1.9):  # how old the first sample was when it was read; the second was new
        meter = Meter()
        meter.look([node(deliveries_total=0, sampled_s=500.0)], 10.0 + late_s)
        meter.look([node(deliveries_total=3506, sampled_s=502.0)], 12.0)
        assert meter.rate("n1", "deliveries_total") == 1753.0


def test_older_sample_of_another_redis_is_not_taken():
    meter = Meter()
    meter.look([node(deliveries_total=0, sampled_s=1.0)], 10.0)
    meter.look([node(deliveries_total=200, sampled_s=3.0)], 12.0)
    meter.look([node(deliveries_total=150, sampled_s=2.5)], 13.0)
    assert meter.rate("n1", "deliveries_total") == 100.0
    meter.look([node(deliveries_total=400, sampled_s=5.0)], 14.0)
    assert meter.rate("n1", "deliveries_total") == 100.0


def test_meter_waits_for_the_second_sample_of_each_node():
    meter = Meter()
    meter.look([node("a", sampled_s=1.0), node("b", sampled_s=1.0)], 10.0)
    meter.look([node("a", sampled_s=3.0), node("b", sampled_s=1.0)], 12.0)
    assert meter.is_waiting
    meter.look([node("a", sampled_s=3.0), node("b", sampled_s=3.0)], 12.1)
    assert not meter.is_waiting


def test_rate_stays_between_renewals_and_ends_with_them():
    meter = Meter()
    meter.look([node(deliveries_total=0)], 10.0)
    meter.look([node(deliveries_total=200)], 12.0)
    meter.look([node(deliveries_total=200)], 13.0)
    assert meter.rate("n1", "deliveries_total") == 100.0
    meter.look([node(deliveries_total=200)], 18.0)
    assert meter.rate("n1", "deliveries_total") == 0.0


def test_restarted_node_has_no_negative_rate():
    meter = Meter()
    meter.look([node(deliveries_total=500)], 10.0)
    meter.look([node(deliveries_total=3)], 12.0)
    assert meter.rate("n1", "deliveries_total") == 0.0


def test_stopped_node_is_removed():
    meter = Meter()
    meter.look([node("a", deliveries_total=0), node("b")], 10.0)
    meter.look([node("b")], 12.0)
    meter.look([node("a", deliveries_total=1000), node("b")], 14.0)
    assert meter.rate("a", "deliveries_total") == 0.0


def test_node_that_writes_nonsense_is_shown_as_zero():
    meter = Meter()
    meter.look([NodeState("n1", {"connections": "many", "public_url": None, "is_redis_unverified": True})], 10.0)
    assert meter.table().row_count == 1
