"""The table: figures as lines of aligned text."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from benchmarks.scenarios.capacity import Costs
from benchmarks.scenarios.connections import Connections
from benchmarks.scenarios.fanout import BURSTS, Cell
from benchmarks.scenarios.growth import Growth
from benchmarks.scenarios.inbound import Inbound
from benchmarks.scenarios.storm import Storm
from benchmarks.scenarios.sustained import Sustained
from benchmarks.servers.protocols import SNORKY_ALONE
from benchmarks.servers.variants import BASELINE, BASELINE_RING, BEFORE, GATEWAY, NAIVE, THROUGH_REDIS
from snorky.gateway.runtime.commands.capacity_model import Figures, Load, node_cpu

__all__ = [
    "before_connection_rows",
    "before_rows",
    "capacity_rows",
    "connection_rows",
    "fanout_rows",
    "growth_rows",
    "inbound_rows",
    "peer_rows",
    "protocol_rows",
    "storm_rows",
    "sustained_rows",
]


def fanout_rows(cells: Sequence[Cell]) -> list[str]:
    """One line per variant and number of clients; single messages on the left, bursts on the right."""
    by_key = {(cell.variant, cell.connections, cell.burst): cell for cell in cells}
    table = [["server CPU per delivery", "clients"]]
    for burst in BURSTS:
        table[0] += ["one: us min" if burst == 1 else f"x{burst}: us min", "median", "x C loop", "x naive"]
    for variant, connections in dict.fromkeys((cell.variant, cell.connections) for cell in cells):
        row = [variant, f"{connections:,}"]
        for burst in BURSTS:
            cell = by_key[variant, connections, burst]
            if cell.fault:
                row += ["failed", cell.fault.splitlines()[0][:40], "", ""]
                continue
            row += [f"{cell.min_us:.2f}", f"{cell.median_us:.2f}"]
            row += [_ratio(cell, by_key.get((name, connections, burst))) for name in (BASELINE, NAIVE)]
        table.append(row)
    lines = _aligned(table)
    if BASELINE not in {cell.variant for cell in cells}:
        lines.append(f"{BASELINE}: no gcc, not measured")
    return lines


def peer_rows(cells: Sequence[Cell]) -> list[str]:
    """One line per server and number of clients, and one per server that could not be measured."""
    by_key = {(cell.variant, cell.connections, cell.burst): cell for cell in cells}
    bursts = list(dict.fromkeys(cell.burst for cell in cells))
    table = [["CPU per delivery", "clients"]]
    for burst in bursts:
        table[0] += [
            "one: us min" if burst == 1 else f"x{burst}: us min",
            "median",
            "ksoftirqd",
            "x send",
            "x io_uring",
        ]
    for variant, connections in dict.fromkeys((cell.variant, cell.connections) for cell in cells if not cell.fault):
        row = [variant, f"{connections:,}"]
        for burst in bursts:
            cell = by_key[variant, connections, burst]
            if cell.fault:
                row += ["failed", "", "", "", ""]
                continue
            row += [f"{each:.2f}" for each in (cell.min_us, cell.median_us, statistics.median(cell.ksoftirqd_us))]
            row += [_ratio(cell, by_key.get((name, connections, burst))) for name in (BASELINE, BASELINE_RING)]
        table.append(row)
    faults = dict.fromkeys((cell.variant, cell.fault.splitlines()[0]) for cell in cells if cell.fault)
    return [*_aligned(table), *(f"{variant}: {fault}" for variant, fault in faults)]


def before_rows(cells: Sequence[Cell]) -> list[str]:
    """One line per number of clients: the gateway compared with the one before; nothing if there is none."""
    by_key = {(cell.variant, cell.connections, cell.burst): cell for cell in cells if not cell.fault}
    table = [
        [f"{GATEWAY}, x {BEFORE}", "one", f"x{BURSTS[-1]}", f"one{THROUGH_REDIS}", f"x{BURSTS[-1]}{THROUGH_REDIS}"]
    ]
    for connections in dict.fromkeys(cell.connections for cell in cells if cell.variant == BEFORE):
        pairs = [
            [by_key.get((name + way, connections, burst)) for name in (GATEWAY, BEFORE)]
            for way in ("", THROUGH_REDIS)
            for burst in BURSTS
        ]
        ratios = [f"{ours.ratio_to(theirs):.2f}" if ours and theirs else "" for ours, theirs in pairs]
        table.append([f"{connections:,} clients", *ratios])
    return _aligned(table) if len(table) > 1 else []


def protocol_rows(cells: Sequence[Cell]) -> list[str]:
    """One line per kind of clients and number of them: the cost of a delivery, and the ratio to Snorky's own."""
    by_key = {(cell.variant, cell.connections, cell.burst): cell for cell in cells}
    table = [["server CPU per delivery, a channel of", "clients"]]
    for burst in BURSTS:
        table[0] += ["one: us min" if burst == 1 else f"x{burst}: us min", "median", "/ Snorky"]
    for variant, connections in dict.fromkeys((cell.variant, cell.connections) for cell in cells):
        row = [variant, f"{connections:,}"]
        for burst in BURSTS:
            cell, own = by_key[variant, connections, burst], by_key[SNORKY_ALONE, connections, burst]
            if cell.fault:
                row += ["failed", cell.fault.splitlines()[0][:40], ""]
                continue
            row += [f"{cell.min_us:.2f}", f"{cell.median_us:.2f}", "-" if own.fault else f"{own.ratio_to(cell):.2f}"]
        table.append(row)
    return _aligned(table)


def sustained_rows(runs: Iterable[Sustained]) -> list[str]:
    """One line per run."""
    heads = ["through Redis, evenly", "lost", "order", "p50 ms", "p99 ms", "max ms"]
    table = [[*heads, "CPU", "us each", "waited for CPU", "receiver CPU", "pacer late"]]
    table += [
        [
            f"{run.per_s:,}/s x {run.connections:,} for {run.seconds} s",
            f"{run.lost:,} of {run.expected:,}",
            f"{run.out_of_order} wrong",
            f"{run.p50_ms:.1f}",
            f"{run.p99_ms:.1f}",
            f"{run.max_ms:.1f}",
            f"{run.cpu_share:.0%}",
            f"{run.us_per_delivery:.2f}",
            f"{run.waited_share:.0%}",
            f"{run.receiver_share:.0%}",
            f"{run.late_max_ms:.1f} ms",
        ]
        for run in runs
    ]
    return _aligned(table)


def connection_rows(runs: Iterable[Connections]) -> list[str]:
    """One line per run."""
    table = [["idle connections", "number", "KiB each", "CPU ms to connect", "connects/s"]]
    table += [
        [run.name, f"{run.connections:,}", f"{run.kib_each:.2f}", f"{run.connect_ms:.2f}", f"{run.per_s:,.0f}"]
        for run in runs
    ]
    return _aligned(table)


def before_connection_rows(runs: Iterable[Connections]) -> list[str]:
    """One line per kind of connection: what it costs, compared with the gateway before; nothing if there is none."""
    by_name = {run.name: run for run in runs}
    table = [[f"{GATEWAY} / {BEFORE}", "KiB each", "CPU to connect"]]
    for name, old in by_name.items():
        if name.startswith(BEFORE):
            what = name.removeprefix(BEFORE)
            new = by_name[GATEWAY + what]
            ratios = (new.bytes_each / old.bytes_each, new.connect_ms / old.connect_ms)
            table.append([f"connections{what}", *(f"{ratio:.2f}" for ratio in ratios)])
    return _aligned(table) if len(table) > 1 else []


def inbound_rows(runs: Iterable[Inbound]) -> list[str]:
    """One line per server."""
    table = [["messages from clients", "clients", "messages", "CPU us each", "/ echo", "messages/s"]]
    for run in runs:
        row = [run.name, f"{run.connections:,}", f"{run.messages:,}", f"{run.us_each:.1f}", f"{run.x_echo:.2f}"]
        table.append([*row, f"{run.per_s:,.0f}"])
    return _aligned(table)


def capacity_rows(figures: Costs, loads: Iterable[Sustained]) -> list[str]:
    """One line per cost, and one per load: the CPU that `snorky capacity` computes, and the measured CPU."""
    costs = Figures(**asdict(figures))
    table = [["for snorky capacity", ""], *([name, f"{value:,.2f}"] for name, value in asdict(figures).items())]
    compared = [["load of one node", "core busy, computed", "measured"]]
    for run in loads:
        load = Load(run.connections, channels=1, publishes_per_s=run.per_s, fanout=run.connections)
        computed = node_cpu(load, costs, nodes=1)
        compared.append([f"{run.per_s:,}/s x {run.connections:,}", f"{computed:.0%}", f"{run.cpu_share:.0%}"])
    return [*_aligned(table), "", *_aligned(compared)]


def growth_rows(growth: Growth) -> list[str]:
    """One line per number of nodes, of channels, of members, and per kind of work for many subscribers."""
    tables = []
    if growth.nodes:
        rows = [["nodes", "", "sent/s", "of these", "with scripts", "Redis us/s", "bytes/s"]]
        for run in growth.nodes:
            names = " ".join(f"{name} {rate:.2f}" for name, rate in run.by_name.items() if rate >= 0.01)
            figures = [f"{run.inside_per_s:.2f}", f"{run.redis_us_per_s:.0f}", f"{run.out_bytes_per_s:,.0f}"]
            rows.append([f"{run.nodes}", run.what, f"{run.sent_per_s:.2f}", names, *figures])
        tables.append(rows)
    if growth.channels:
        rows = [["channels of one node", "per connection", "bytes each", "in Redis", "us to subscribe"]]
        for each in growth.channels:
            figures = [f"{each.node_bytes:,.0f}", f"{each.redis_bytes:,.0f}", f"{each.subscribe_us:.0f}"]
            rows.append([f"{each.channels:,}", f"{each.per_connection:,}", *figures])
        tables.append(rows)
    if growth.rosters:
        rows = [["members", "join ms", "CPU us: node", "Redis", "list ms", "numbers ms", "longest step ms"]]
        for roster in growth.rosters:
            figures = [f"{roster.join_ms:.2f}", f"{roster.node_us:.0f}", f"{roster.redis_us:.0f}"]
            figures += [f"{ms:.1f}" for ms in (roster.list_ms, roster.stats_ms, roster.step_ms)]
            rows.append([f"{roster.members:,}", *figures])
        tables.append(rows)
    if growth.crowd:
        rows = [["longest step of the loop", "subscribers", "with sockets", "CPU ms", "of it GC", "wall ms"]]
        for step in growth.crowd:
            figures = [f"{ms:.1f}" for ms in (step.cpu_ms, step.gc_ms, step.wall_ms)]
            rows.append([step.what, f"{step.subscribers:,}", f"{step.sockets:,}", *figures])
        tables.append(rows)
    lines: list[str] = []
    for table in tables:
        lines += ["", *_aligned(table)] if lines else _aligned(table)
    return lines


def storm_rows(runs: Iterable[Storm]) -> list[str]:
    """One line per run with clients that come back at once."""
    table = [["clients at once", "refused", "closed", "p50 ms", "p99 ms", "MB more", "others' p99 ms", "quiet"]]
    for run in runs:
        figures = [f"{run.p50_ms:,.0f}", f"{run.p99_ms:,.0f}", f"{run.rss_bytes / 1e6:.0f}"]
        figures += [f"{run.calm_p99_ms:.1f}", f"{run.quiet_p99_ms:.1f}"]
        table.append([f"{run.clients:,}", f"{run.refused:,}", f"{run.closed:,}", *figures])
    return _aligned(table)


def _ratio(cell: Cell, other: Cell | None) -> str:
    return f"{cell.ratio_to(other):.2f}" if other is not None and not other.fault else "-"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Pad the columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(f"{word:{'<' if not column else '>'}{widths[column]}}" for column, word in enumerate(row)).rstrip()
        for row in table
    ]
