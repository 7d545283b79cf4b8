"""`python -m benchmarks [--quick]`: all variants in one run, one table. The load stays on loopback."""

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.report.goals import (
    call_goals,
    connect_goals,
    goals,
    growth_goals,
    peer_goals,
    protocol_goals,
    storm_goals,
)
from benchmarks.report.table import (
    before_connection_rows,
    before_rows,
    capacity_rows,
    connection_rows,
    fanout_rows,
    growth_rows,
    inbound_rows,
    peer_rows,
    protocol_rows,
    storm_rows,
    sustained_rows,
)
from benchmarks.scenarios.capacity import Costs, costs, loads
from benchmarks.scenarios.connections import Connections, connect, medians
from benchmarks.scenarios.fanout import Cell, measure
from benchmarks.scenarios.growth import Growth, grow
from benchmarks.scenarios.inbound import Inbound, flood
from benchmarks.scenarios.peers import PYTHON_PATH, compare
from benchmarks.scenarios.storm import Storm, storm
from benchmarks.scenarios.sustained import Sustained, sustain
from benchmarks.servers.protocols import protocols
from benchmarks.servers.redis_server import NoRedis, RedisServer
from benchmarks.servers.variants import (
    BASELINE,
    BEFORE,
    GATEWAY,
    NAIVE_CONNECTION,
    gateway,
    gateway_module,
    naive,
    variants,
)
from benchmarks.support.child import ChildFailed, raise_file_limit
from benchmarks.support.machine import describe, roles
from benchmarks.support.message import subscribe

__all__: list[str] = []

SECTIONS = ("fanout", "protocols", "redis", "connections", "inbound", "capacity", "growth", "storm")
REPETITIONS = 5  # of connections, when two versions are compared, and of clients that come back at once


def _note(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer clients and repetitions: about a minute")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a part of the table (may be repeated)")
    parser.add_argument(
        "--before", type=Path, metavar="PATH", help="another clone: its fan-out, connections and calls, too"
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="only the fan-out, beside other servers, which are installed in a cache folder",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, also for `snorky capacity`")
    options = parser.parse_args()
    if options.before and not gateway_module(options.before):
        parser.error(f"--before: {options.before} is no clone of this project that has benchmarks")
    sections = options.only or SECTIONS
    if options.before and not {"fanout", "connections", "inbound"} & set(sections):
        parser.error("--before compares fan-out, connections and calls, and --only leaves them out")
    if options.peers and (options.only or options.before):
        parser.error("--peers is a run of its own, without --only and --before")
    files = raise_file_limit()
    if options.peers:
        return _beside_peers(options)
    lines, faults = describe(), list[str]()
    cells: list[Cell] = []
    by_protocol: list[Cell] = []
    sustained: list[Sustained] = []
    idle: list[Connections] = []
    inbound: list[Inbound] = []
    figures: Costs | None = None
    compared_loads: list[Sustained] = []
    growth = Growth()
    storms: list[Storm] = []
    with ExitStack() as stack:
        redis = None
        try:
            redis = stack.enter_context(RedisServer())
        except NoRedis as error:
            faults.append(f"through Redis: not measured, {error}")
        if "fanout" in sections:
            for connections in (100, 1_000) if options.quick else (100, 1_000, 5_000):
                _note(f"fan-out to {connections:,} clients")
                repetitions, deliveries = (3, 5_000) if options.quick else (7 if connections > 1_000 else 15, 20_000)
                compared = variants(has_redis=redis is not None, before=options.before)
                cells += measure(compared, connections, repetitions=repetitions, deliveries=deliveries)
        if "protocols" in sections:
            for connections in (100, 1_000):
                _note(f"fan-out to {connections:,} clients, by their protocol")
                repetitions, passes = (6, 10) if options.quick else (20, 50)
                by_protocol += measure(
                    protocols(), connections, repetitions=repetitions, deliveries=10_000, passes_min=passes
                )
        try:
            if "redis" in sections and redis is not None:
                for per_s in (100, 500):
                    seconds = 3 if options.quick else 12
                    _note(f"through Redis, {per_s} messages/s to 1,000 clients for {seconds} s")
                    sustained.append(sustain(redis, per_s=per_s, connections=1_000, seconds=seconds))
            if "connections" in sections:
                idle = _connections(2_000 if options.quick else min(10_000, files - 1_000), options.before)
            if "inbound" in sections:
                _note("messages from clients")
                messages, repetitions = (5_000, 3) if options.quick else (20_000, 9)
                inbound = flood(connections=100, messages=messages, repetitions=repetitions, before=options.before)
            if "capacity" in sections and redis is not None:
                _note("what a load costs, for snorky capacity")
                figures = costs(connections=2_000 if options.quick else 10_000, repetitions=3 if options.quick else 9)
                compared_loads = loads(redis)
            if "growth" in sections and redis is not None:
                growth = grow(files, is_quick=options.quick, note=_note)
            if "storm" in sections and redis is not None:
                returning = 2_000 if options.quick else min(10_000, files - 2_000)
                _note(f"{returning:,} clients that come back at once")
                storms = [storm(returning) for _ in range(1 if options.quick else REPETITIONS)]
        except ChildFailed as error:
            faults.append(f"FAILED: {error}")
        if redis is not None:
            lines.append(f"Redis: {redis.name} of this machine, on the CPU of the receiver")
    is_failed = any("FAILED" in fault for fault in faults) or any(cell.fault for cell in (*cells, *by_protocol))
    if options.json:
        found: dict[str, object] = {"machine": lines, "faults": faults}
        found |= {"fanout": [*map(asdict, cells)], "protocols": [*map(asdict, by_protocol)]}
        found |= {"redis": [*map(asdict, sustained)], "connections": [*map(asdict, idle)]}
        found |= {"inbound": [*map(asdict, inbound)], "loads": [*map(asdict, compared_loads)]}
        found |= {"growth": asdict(growth), "storm": [*map(asdict, storms)]}
        if figures is not None:
            found["figures"] = asdict(figures)
        print(json.dumps(found, indent=2))
        return int(is_failed)
    reached = [*goals(cells, sustained, idle), *protocol_goals(by_protocol), *connect_goals(idle), *call_goals(inbound)]
    reached += [*growth_goals(growth), *storm_goals(storms)]
    for rows in (
        fanout_rows(cells) if cells else [],
        before_rows(cells),
        protocol_rows(by_protocol) if by_protocol else [],
        sustained_rows(sustained) if sustained else [],
        connection_rows(idle) if idle else [],
        before_connection_rows(idle),
        inbound_rows(inbound) if inbound else [],
        capacity_rows(figures, compared_loads) if figures else [],
        growth_rows(growth),
        storm_rows(storms) if storms else [],
        [str(goal) for goal in reached],
        faults,
    ):
        lines += ["", *rows] if rows else []
    print("\n".join(lines))
    return int(is_failed)


def _beside_peers(options: argparse.Namespace) -> int:
    lines = [*describe(), roles()]
    cells, remarks = compare(is_quick=options.quick, note=_note)
    if options.json:
        print(json.dumps({"machine": lines, "remarks": remarks, "peers": [*map(asdict, cells)]}, indent=2))
    else:
        print("\n".join([*lines, "", *peer_rows(cells), *remarks, "", *map(str, peer_goals(cells))]))
    return int(any(cell.fault for cell in cells if cell.variant in (BASELINE, GATEWAY, PYTHON_PATH)))


def _connections(number: int, before: Path | None) -> list[Connections]:
    """Measure idle connections. before: a clone whose node takes turns with ours, several times."""
    _note(f"{number:,} idle connections")
    kinds = {
        "": None,
        ", subscribed to one channel": subscribe(),
        ", each to a channel of its own": subscribe("bench%d"),
    }
    nodes: dict[str, Path | None] = {GATEWAY: None}
    if before is not None:
        nodes[BEFORE] = before
    runs: dict[str, list[Connections]] = {name + kind: [] for name in nodes for kind in kinds}
    for _ in range(1 if before is None else REPETITIONS):
        for kind, message in kinds.items():
            for name, folder in nodes.items():
                runs[name + kind].append(connect(name + kind, partial(gateway, folder=folder), number, send=message))
    naive_run = connect(NAIVE_CONNECTION, partial(naive, "each", "asyncio"), min(2_000, number))
    return [*map(medians, runs.values()), naive_run]


if __name__ == "__main__":
    sys.exit(main())
