"""The state of a node for `snorky stats`, which each renewal of its lease carries."""

import pytest

from snorky.gateway.runtime.node import _state
from snorky.gateway.testing.cluster import memory_cluster
from snorky.services.pubsub import PubSubService


async def test_the_totals_of_a_node_are_read_without_collecting_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    async with memory_cluster(1, lambda: [PubSubService()]) as cluster:
        node = cluster.nodes[0]
        node.metrics.deliveries.inc(3)
        node.metrics.messages_received.labels("websocket").inc(2)
        node.metrics.messages_received.labels("backend").inc()
        monkeypatch.delattr(node.metrics.registry.__class__, "collect")
        state = _state(node, "")
    assert (state["deliveries_total"], state["messages_received_total"], state["sent_bytes_total"]) == (3, 3, 0)
