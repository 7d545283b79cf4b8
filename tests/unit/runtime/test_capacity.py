"""`snorky capacity`: its model, compared with measured loads, and its output."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from snorky.gateway.cli import app
from snorky.gateway.runtime.commands.capacity_model import (
    BUSY,
    CONNECTIONS_MAX,
    Figures,
    Load,
    Plan,
    client_bps,
    node_cpu,
    node_memory,
    plan,
)
from tests.support.processes.tools import ROOT

RUN = ROOT / "benchmarks/capacity.json"  # a run of the benchmark, which docs/capacity.md quotes
SMALL = Load(connections=1_000, channels=100, publishes_per_s=10, fanout=10)
LARGE = Load(connections=1e7, channels=1e6, publishes_per_s=5e4, fanout=200)
COSTS = Figures()


def planned(load: Load, **given: Any) -> Plan:
    return plan(load, COSTS, **{"memory_bytes": 4 << 30, "interface_bps": 10e9, **given})


def capacity(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["capacity", *arguments])
    return result.exit_code, result.output


def options(load: Load) -> list[str]:
    return [
        f"--connections={load.connections}",
        f"--channels={load.channels}",
        f"--publishes={load.publishes_per_s}",
        f"--fanout={load.fanout}",
    ]


# -- the model --------------------------------------------------------------------------------------------------------


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RUN.read_text())
    return found


@pytest.mark.parametrize("number", range(4))
def test_model_agrees_with_a_measured_load(number: int) -> None:
    run = recorded()["loads"][number]
    load = Load(run["connections"], 1, run["per_s"], run["connections"])
    computed = node_cpu(load, Figures(**recorded()["figures"]), nodes=1)
    assert computed == pytest.approx(run["cpu_share"], rel=0.35, abs=0.03)


def test_costs_of_the_command_are_those_of_the_recorded_run() -> None:
    for name, value in recorded()["figures"].items():
        assert getattr(COSTS, name) == pytest.approx(value, rel=0.05), name


def test_one_node_is_enough_for_a_small_load() -> None:
    found = planned(SMALL)
    assert (found.nodes, found.redis) == (1, 1)
    assert found.receivers == 1, "each channel has subscribers there"


@pytest.mark.parametrize("more", ["connections", "channels", "publishes_per_s", "fanout"])
def test_more_load_never_needs_fewer_nodes(more: str) -> None:
    counts = [planned(replace(LARGE, **{more: getattr(LARGE, more) * times})).nodes for times in (0.25, 0.5, 1, 2, 4)]
    assert counts == sorted(counts)


def test_each_node_has_enough_of_everything_and_one_node_less_would_not() -> None:
    found = planned(LARGE)

    def lacks(nodes: int) -> bool:
        busy = node_cpu(LARGE, replace(COSTS, delivery_us=COSTS.joined_delivery_us), nodes)
        return (
            busy > BUSY
            or node_memory(LARGE, COSTS, nodes) > BUSY * (4 << 30)
            or LARGE.connections / nodes > BUSY * CONNECTIONS_MAX
            or client_bps(LARGE) / nodes > BUSY * 10e9
        )

    assert not lacks(found.nodes)
    assert lacks(found.nodes - 1)
    assert found.nodes == max(found.nodes_by.values())


def test_a_publication_goes_to_the_nodes_that_have_subscribers() -> None:
    assert planned(replace(LARGE, fanout=1)).receivers == pytest.approx(1)
    found = planned(LARGE)
    assert 0.5 * LARGE.fanout < found.receivers < LARGE.fanout, "most subscribers are alone on their node"


def test_history_costs_the_node_that_publishes_and_redis() -> None:
    bare, kept = planned(LARGE), planned(replace(LARGE, kept=1.0))
    assert kept.redis_cpu == pytest.approx(bare.redis_cpu + LARGE.publishes_per_s * COSTS.kept_redis_us / 1e6, rel=0.05)
    assert node_cpu(replace(SMALL, kept=1.0), COSTS, 1) > node_cpu(SMALL, COSTS, 1)


def test_a_full_core_joins_messages_before_it_is_overloaded() -> None:
    crowd = Load(connections=1_000, channels=1, publishes_per_s=100, fanout=1_000)
    costs = replace(COSTS, idle_cpu=0.0, delivery_us=15.0, joined_delivery_us=2.0, publication_us=0.0)
    assert node_cpu(replace(crowd, publishes_per_s=20), costs, 1) == pytest.approx(0.3)
    assert node_cpu(crowd, costs, 1) == 1.0
    assert node_cpu(replace(crowd, publishes_per_s=1_000), costs, 1) == pytest.approx(2.0)


def test_a_payload_that_fills_the_network_needs_more_nodes_and_servers_of_redis() -> None:
    wide = replace(LARGE, payload_bytes=20_000)
    found = planned(wide, interface_bps=1e9)
    assert found.nodes_by["network"] == found.nodes
    assert found.redis_bps / found.redis <= BUSY * 1e9


# -- the command ------------------------------------------------------------------------------------------------------


def test_command_prints_what_the_model_computes() -> None:
    code, output = capacity(*options(LARGE))
    found = planned(LARGE)
    assert code == 0
    assert "10,000,000 deliveries/s" in output
    assert f"nodes    {found.nodes:,}, a core each" in output
    assert f"servers: {found.redis}" in output
    assert "list several in redis_url" in output
    first = max(found.nodes_by, key=lambda what: found.nodes_by[what])
    assert f"first    {first} limits the nodes" in output


def test_small_load_needs_no_second_redis() -> None:
    code, output = capacity(*options(SMALL))
    assert code == 0
    assert "servers: 1;" in output
    assert "not enough" not in output


def test_costs_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"machine": [], "figures": {"delivery_us": 1400.0, "joined_delivery_us": 190.0}}))
    _, ours = capacity(*options(LARGE))
    code, theirs = capacity(*options(LARGE), f"--figures={file}")
    assert code == 0
    assert theirs != ours


@pytest.mark.parametrize("text", ["", "{}", '{"figures": {"delivery_us": "much"}}'])
def test_file_that_is_no_run_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(text)
    code, output = capacity(*options(SMALL), f"--figures={file}")
    assert code == 2
    assert 'is not the output of make bench ARGS="--only capacity --json"' in output


def test_missing_file_is_named(tmp_path: Path) -> None:
    code, output = capacity(*options(SMALL), f"--figures={tmp_path / 'none.json'}")
    assert (code, "No such file" in output) == (2, True)


def test_load_that_no_number_of_nodes_can_carry_is_an_error() -> None:
    code, output = capacity(*options(replace(LARGE, publishes_per_s=1e9, fanout=1e9)))
    assert code == 1
    assert "each would still lack CPU" in output
