"""Goals for the figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.peers.servers import BUN, UWS
from benchmarks.scenarios.connections import Connections
from benchmarks.scenarios.fanout import Cell
from benchmarks.scenarios.growth import Growth
from benchmarks.scenarios.inbound import Inbound
from benchmarks.scenarios.peers import PEER_BURSTS, PYTHON_PATH
from benchmarks.scenarios.storm import Storm
from benchmarks.scenarios.sustained import Sustained
from benchmarks.servers.protocols import MIXED, SNORKY_AGAIN, SNORKY_ALONE
from benchmarks.servers.variants import BASELINE, BASELINE_RING, GATEWAY, NAIVE, NAIVE_CONNECTION

__all__ = [
    "Goal",
    "call_goals",
    "connect_goals",
    "goals",
    "growth_goals",
    "peer_goals",
    "protocol_goals",
    "storm_goals",
]

CLIENTS = 1_000  # number of clients for the goals of fan-out


@dataclass(frozen=True, slots=True)
class Goal:
    """One claim. figure: None if it could not be measured here."""

    claim: str
    figure: float | None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """None: not measured."""
        if self.figure is None:
            return None
        return (self.at_least is None or self.figure >= self.at_least) and (
            self.at_most is None or self.figure <= self.at_most
        )

    def __str__(self) -> str:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[self.is_met]
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        figure = "" if self.figure is None else f"  {self.figure:.2f}"
        return f"{verdict:12}  {self.claim} {bound}{figure}{self.note}"


def goals(cells: Sequence[Cell], sustained: Sequence[Sustained], idle: Sequence[Connections]) -> list[Goal]:
    """Compare a run with the goals."""

    def ratio(burst: int, other: str) -> float | None:
        found = {c.variant: c for c in cells if c.connections == CLIENTS and c.burst == burst and not c.fault}
        return found[GATEWAY].ratio_to(found[other]) if GATEWAY in found and other in found else None

    result = [
        Goal(f"single, {CLIENTS:,} clients, x C loop", ratio(1, BASELINE), at_least=0.75),
        Goal(f"single, {CLIENTS:,} clients, x naive aiohttp", ratio(1, NAIVE), at_least=1.7),
        Goal(f"burst of 10, {CLIENTS:,} clients, x naive aiohttp", ratio(10, NAIVE), at_least=12),
    ]
    for run in sustained:
        what = f"{run.per_s:,}/s x {run.connections:,} through Redis"
        note = f"  (other programs had the node's CPU {run.waited_share:.0%} of the time)"
        result.append(Goal(f"{what}: p99 ms", run.p99_ms, at_most=100, note=note if run.waited_share > 0.2 else ""))
        result.append(Goal(f"{what}: lost", run.lost, at_most=0))
    result += [
        Goal(f"KiB per connection, {each.connections:,}, {each.name}", each.kib_each, at_most=3)
        for each in idle
        if GATEWAY in each.name and not each.has_own_channel
    ]
    return result


def protocol_goals(cells: Sequence[Cell]) -> list[Goal]:
    """Compare the cost of foreign protocols with that of Snorky's own: the worst ratio of each kind of clients."""
    by_key = {(cell.variant, cell.connections, cell.burst): cell for cell in cells if not cell.fault}
    worst: dict[str, float] = {}
    for (variant, connections, burst), cell in by_key.items():
        own = by_key.get((SNORKY_ALONE, connections, burst))
        if own is not None and cell is not own:
            worst[variant] = max(worst.get(variant, 0.0), own.ratio_to(cell))
    return [
        Goal(f"CPU of a delivery / Snorky's, {variant}", worst.get(variant), at_most=1.2 if variant == MIXED else 1.1)
        for variant in dict.fromkeys(cell.variant for cell in cells)
        if variant not in (SNORKY_ALONE, SNORKY_AGAIN)
    ]


def peer_goals(cells: Sequence[Cell]) -> list[Goal]:
    """Compare the fan-out with other servers, and to few clients with the node without the extension module."""
    found = {(cell.variant, cell.connections, cell.burst): cell for cell in cells if not cell.fault}

    def goal(connections: int, burst: int, other: str, at_least: float) -> Goal:
        ours, theirs = (found.get((name, connections, burst)) for name in (GATEWAY, other))
        what = "single" if burst == 1 else f"burst of {burst}"
        figure = ours.ratio_to(theirs) if ours and theirs else None
        return Goal(f"{what}, {connections:,} clients, x {other}", figure, at_least=at_least)

    singles = {BASELINE_RING: 1.0, BASELINE: 0.9, BUN: 1.1, UWS: 1.1}
    return [
        *(goal(CLIENTS, 1, other, at_least) for other, at_least in singles.items()),
        *(goal(CLIENTS, PEER_BURSTS[-1], other, 1.1) for other in (BUN, UWS)),
        *(goal(few, burst, PYTHON_PATH, 1.0) for few in (10, 100) for burst in PEER_BURSTS),
    ]


def growth_goals(growth: Growth) -> list[Goal]:
    """Compare what grows with the goals."""
    found = []
    for run in growth.nodes[-3:-2]:  # the most nodes, without clients
        found.append(Goal(f"commands per second of an idle node, {run.nodes} nodes", run.sent_per_s, at_most=3))
    for each in growth.channels:
        found.append(Goal(f"bytes per channel, {each.channels:,} on one node", each.node_bytes, at_most=1024))
    if growth.rosters:
        few, many = growth.rosters
        claim = f"CPU of a join, {many.members:,} members / {few.members}"
        found.append(Goal(claim, many.join_us / few.join_us, at_most=1.2))
    found += [
        Goal(f"longest step, CPU ms, {step.subscribers:,} subscribers, {step.what}", step.cpu_ms, at_most=10)
        for step in growth.crowd
    ]
    return found


def connect_goals(idle: Sequence[Connections]) -> list[Goal]:
    """Compare the CPU of a connect with that of a typical aiohttp server."""
    by_name = {each.name: each for each in idle}
    ours, naive = by_name.get(GATEWAY), by_name.get(NAIVE_CONNECTION)
    if ours is None or naive is None:
        return []
    return [Goal(f"CPU to connect / {NAIVE_CONNECTION}", ours.connect_ms / naive.connect_ms, at_most=0.5)]


def call_goals(inbound: Sequence[Inbound]) -> list[Goal]:
    """Compare the CPU of a call and its reply with that of an echo."""
    return [
        Goal("CPU of a call and its reply / of an echo by a bare Protocol", each.x_echo, at_most=2.5)
        for each in inbound
        if each.name.startswith(GATEWAY)
    ]


def storm_goals(runs: Sequence[Storm]) -> list[Goal]:
    """Compare the medians of the runs with clients that come back at once."""
    if not runs:
        return []
    what = f"{runs[0].clients:,} clients at once"
    others = median(run.calm_p99_ms / run.quiet_p99_ms for run in runs)
    return [
        Goal(f"{what}: p99 s until all is recovered", median(run.p99_ms for run in runs) / 1e3, at_most=5),
        Goal(f"{what}: MB more", median(run.rss_bytes for run in runs) / 1e6, at_most=150),
        Goal(f"{what}: others' p99 / quiet", others, at_most=3),
    ]
