"""A rolling restart behind the shipped nginx loses nothing for clients of our libraries; `make roll` uses 1,000."""

from pathlib import Path

import pytest

from tests.fault_lab.rates import Rates
from tests.fault_lab.rolling import PEAK_NEEDS, Drain, roll
from tests.support.clients.js_crowd import JS
from tests.support.clients.numbers import Tally, tally

CLIENTS = 120


@pytest.mark.needs("redis-server", "nginx", "node")
@pytest.mark.skipif(not (JS / "node_modules" / "ws").exists(), reason="needs ws: npm --prefix clients/js ci")
async def test_rolling_restart_of_all_nodes_costs_our_clients_nothing(tmp_path: Path) -> None:
    restarts = await roll(tmp_path, clients=CLIENTS, rounds=1, grace_s=4.0, pace_s=0.02)
    assert restarts.is_kept, restarts.broken
    assert restarts.tally.clients == CLIENTS and restarts.tally.delivered > 0
    assert sum(drain.leaving for drain in restarts.drains) > 0
    # On a busy machine a new connection may take longer than a node waits; the client then only reconnects again.
    assert set(restarts.closes) <= {1001}


def test_a_tally_counts_lost_duplicated_and_reordered_messages() -> None:
    assert tally("one", [0, 1, 2], 3).is_whole
    assert tally("one", [0, 2], 3).lost == 1
    assert tally("one", [0, 1, 1, 2], 3).duplicated == 1
    assert tally("one", [1, 0, 2], 3).out_of_order == 1
    both = tally("one", [0, 1, 2], 3) + tally("other", [0, 1], 3) + Tally(gaps=1)
    assert (both.clients, both.delivered, both.lost, both.gaps, both.is_whole) == (2, 5, 1, 1, False)
    assert "other" in str(both)


def test_a_herd_of_handshakes_is_a_broken_promise() -> None:
    rates = Rates()
    rates.samples = [(0.0, 7.0), (1.0, 57.0), (3.0, 157.0), (3.1, 187.0)]
    # the late sample's bin is 2 s long, the last one is what remains
    assert (rates.total, rates.peak_per_s) == (180.0, 50.0)
    assert Drain(0, 300, 300, peak_per_s=60, mean_per_s=30, took_s=10).is_paced
    assert not Drain(0, 300, 300, peak_per_s=61, mean_per_s=30, took_s=10).is_paced
    assert Drain(0, PEAK_NEEDS - 1, PEAK_NEEDS - 1, peak_per_s=99, mean_per_s=30, took_s=10).is_paced
