"""What grows with the numbers of nodes, channels, members and subscribers. Each part has a Redis of its own.

python -m benchmarks.scenarios.growth channels 1000000    # one part, of any size: nodes, channels, members, crowd
"""

import argparse
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.receivers.receiver import Receiver
from benchmarks.servers.redis_server import RedisServer, request
from benchmarks.support.child import Child, ChildFailed, raise_file_limit
from benchmarks.support.machine import receiver_cpu, server_cpu
from benchmarks.support.message import PREFIX, compact, payload, subscribe
from benchmarks.support.monitor import info, sent_commands

__all__ = [
    "ChannelsRun",
    "CrowdStep",
    "Growth",
    "NodesRun",
    "RosterRun",
    "crowd",
    "grow",
    "many_channels",
    "many_nodes",
    "rosters",
]

SETTLE_S = 10.0  # until the work that started nodes, or their clients, have begun is done
ARRIVALS_PER_S = 10
WARM_CHANNELS = 2_000
CHANNELS_EACH = 1_000  # the default of channels_per_connection
JOINS = 50
CROWD_CHANNEL = "roster-crowd"  # its rule has presence
REPETITIONS = 9  # of what can be repeated: of the longest steps, the median counts
GONE_WITHIN_S = 60.0
SPARE_FILES = 1_200  # of a node's limit: Redis, and what AcceptGate reserves
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class NodesRun:
    """Nodes on one Redis. All rates are those of one node.

    sent_per_s: commands that a node sends, and by_name. inside_per_s: all calls that Redis counts, those of scripts
    included. redis_us_per_s: CPU of Redis. out_bytes_per_s: from Redis to the node.
    """

    nodes: int
    what: str
    sent_per_s: float
    by_name: dict[str, float]
    inside_per_s: float
    redis_us_per_s: float
    out_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class ChannelsRun:
    """Channels of one node, with one subscriber each. Bytes are those of a channel and its subscription."""

    channels: int
    per_connection: int
    node_bytes: float
    redis_bytes: float
    subscribe_us: float


@dataclass(frozen=True, slots=True)
class RosterRun:
    """A roster of so many members: the cost of a join with its leave, and reads of the list."""

    members: int
    join_ms: float
    node_us: float
    redis_us: float
    list_ms: float
    stats_ms: float
    step_ms: float

    @property
    def join_us(self) -> float:
        """CPU of node and Redis."""
        return self.node_us + self.redis_us


@dataclass(frozen=True, slots=True)
class CrowdStep:
    """The longest step of the loop of a node whose channel has so many subscribers. See LoopWatch.

    sockets: subscribers that have one.
    """

    what: str
    subscribers: int
    sockets: int
    cpu_ms: float
    wall_ms: float
    gc_ms: float


@dataclass(frozen=True, slots=True)
class Growth:
    """All figures of one run."""

    nodes: list[NodesRun] = field(default_factory=list)
    channels: list[ChannelsRun] = field(default_factory=list)
    rosters: list[RosterRun] = field(default_factory=list)
    crowd: list[CrowdStep] = field(default_factory=list)


def grow(files: int, *, is_quick: bool, note: Callable[[str], object]) -> Growth:
    """Run all parts. files: the limit of open files. note: called with what begins. Raises ChildFailed."""
    numbers, seconds = ((2, 8), 10.0) if is_quick else ((2, 8, 32, 128), 8.0)
    channels, members, subscribers = (50_000, 5_000, 2_000) if is_quick else (200_000, 100_000, 20_000)
    note(f"{numbers[-1]} nodes on one Redis")
    found = Growth(many_nodes(numbers, seconds=seconds))
    note(f"{channels:,} channels on one node")
    found.channels.append(many_channels(channels, CHANNELS_EACH))
    note(f"{members:,} members in one roster")
    found.rosters.extend(rosters(members, JOINS))
    note(f"{subscribers:,} subscribers of one channel")
    found.crowd.extend(crowd(subscribers, files))
    return found


def _start(redis: RedisServer) -> Child:
    argv = [sys.executable, "-m", "benchmarks.servers.growth_nodes", redis.url]
    return Child(argv, cpu=server_cpu())


def many_nodes(numbers: tuple[int, ...], *, seconds: float) -> list[NodesRun]:
    """Run so many nodes, one number after the other, without clients and then with one member each."""
    with RedisServer() as redis, _start(redis) as child:
        runs = []
        for number in numbers:
            child.ask(f"nodes {number}")
            time.sleep(SETTLE_S)
            runs.append(_observe(redis, number, "no clients", seconds))
        child.ask("watchers")
        time.sleep(SETTLE_S)
        runs.append(_observe(redis, numbers[-1], "a member each", seconds))
        joins = int(seconds * ARRIVALS_PER_S / 2)
        runs.append(_observe(redis, numbers[-1], f"and {ARRIVALS_PER_S} joins/s", seconds, child, joins))
    return runs


def _observe(
    redis: RedisServer, nodes: int, what: str, seconds: float, child: Child | None = None, arrivals: int = 0
) -> NodesRun:
    """Count what Redis gets and does for some seconds. arrivals: how many clients come and go meanwhile."""
    with redis.connect() as control:
        before = _facts(control)
        if child is not None:
            child.begin(f"arrivals {arrivals} {ARRIVALS_PER_S}")
        sent, own_bytes = sent_commands(redis, seconds)
        after = _facts(control)
        if child is not None:
            child.answer()
    calls, cpu_s, out_bytes = (new - old for new, old in zip(after, before, strict=True))
    each = nodes * seconds
    names = {name: count / each for name, count in sent.most_common() if name not in ("info", "monitor")}
    return NodesRun(
        nodes, what, sum(names.values()), names, calls / each, cpu_s * 1e6 / each, (out_bytes - own_bytes) / each
    )


def _facts(control: socket.socket) -> tuple[float, float, float]:
    """Return the calls that Redis has counted, its CPU seconds, and the bytes that it has sent."""
    stats, cpu = info(control, "stats"), info(control, "cpu")
    cpu_s = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
    return float(stats["total_commands_processed"]), cpu_s, float(stats["total_net_output_bytes"])


def many_channels(channels: int, per_connection: int) -> ChannelsRun:
    """Subscribe one node to so many channels, and measure its memory and that of Redis. Raises ChildFailed."""
    with RedisServer() as redis, _start(redis) as child, redis.connect() as control:
        child.ask("nodes 1")
        child.ask(f"channels {WARM_CHANNELS} {per_connection}")
        time.sleep(1.0)
        rss, used = child.rss_bytes(), int(info(control, "memory")["used_memory"])
        found = child.ask(f"channels {channels} {per_connection}", timeout_s=3600.0)
        time.sleep(1.0)
        if found["channels"] != channels + WARM_CHANNELS:
            raise ChildFailed(f"expected {channels:,} channels more than {WARM_CHANNELS:,}: {found}")
        return ChannelsRun(
            channels,
            per_connection,
            (child.rss_bytes() - rss) / channels,
            (int(info(control, "memory")["used_memory"]) - used) / channels,
            found["cpu_s"] / channels * 1e6,
        )


def rosters(members: int, joins: int) -> list[RosterRun]:
    """Measure joins of a small and of a large roster, which take turns. Raises ChildFailed."""
    with RedisServer() as redis, _start(redis) as child, redis.connect() as control:
        child.ask("nodes 2")
        child.ask(f"members {members}", timeout_s=600.0)
        runs: dict[int, list[RosterRun]] = {0: [], 1: []}
        for is_crowd in (0, 1) * (1 + ROUNDS):
            child.ask("watch 1")
            redis_s = _facts(control)[1]
            found = child.ask(f"joins {is_crowd} {joins}", timeout_s=600.0)
            redis_us = (_facts(control)[1] - redis_s) * 1e6 / joins
            steps = child.ask("watch 0")
            runs[is_crowd].append(
                RosterRun(
                    members if is_crowd else 100, found["wall_ms"], found["node_us"], redis_us, 0, 0, steps["cpu_ms"]
                )
            )
        result = []
        for is_crowd, each in runs.items():
            child.ask("watch 1")
            read = child.ask(f"presence {is_crowd}", timeout_s=600.0)
            steps = child.ask("watch 0")
            each = each[1:]  # the first round warms up
            result.append(
                RosterRun(
                    each[0].members,
                    median(run.join_ms for run in each),
                    median(run.node_us for run in each),
                    median(run.redis_us for run in each),
                    read["list_ms"],
                    read["stats_ms"],
                    max(steps["cpu_ms"], *(run.step_ms for run in each)),
                )
            )
        return result


def crowd(subscribers: int, files: int) -> list[CrowdStep]:
    """Measure the longest steps of a node with so many clients in one channel. Raises ChildFailed.

    files: the limit of open files. As many clients as it permits have sockets.
    """
    sockets = min(subscribers, files - SPARE_FILES)
    found: list[CrowdStep] = []

    with RedisServer() as redis, _start(redis) as child, redis.connect() as publisher:

        def note(what: str, steps: dict[str, float]) -> None:
            found.append(CrowdStep(what, subscribers, sockets, steps["cpu_ms"], steps["wall_ms"], steps["gc_ms"]))

        port = int(child.ask("serve")["port"])
        child.ask(f"crowd {subscribers - sockets}")
        child.ask("watch 1")
        with Receiver(port, sockets, cpu=receiver_cpu(), send=subscribe(CROWD_CHANNEL), timeout_s=300.0) as receiver:
            note("all with sockets connect and subscribe", child.ask("watch 1"))
            for burst, what in ((1, "a publication"), (10, "ten publications at once")):
                steps = []
                for _ in range(REPETITIONS):
                    receiver.mark()
                    _publish(publisher, burst)
                    receiver.wait(burst * sockets)
                    steps.append(child.ask("watch 1"))
                note(what, _medians(steps))
            steps = []
            for _ in range(REPETITIONS):
                child.ask("presence 1")
                steps.append(child.ask("watch 1"))
            note("a client requests the list", _medians(steps))
        note("all with sockets disconnect", _until_gone(child, subscribers - sockets))
    return found


def _medians(steps: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(each[name] for each in steps) for name in steps[0]}


def _publish(publisher: socket.socket, burst: int) -> None:
    channel = f"{PREFIX}:{{pubsub:{CROWD_CHANNEL}}}".encode()
    publisher.sendall(request(b"PUBLISH", channel, compact(payload())) * burst)
    replies = b""
    while replies.count(b"\n") < burst:
        replies += publisher.recv(65536)


def _until_gone(child: Child, rest: int) -> dict[str, float]:
    """Wait until a node has so many clients. Returns the longest steps until then. Raises ChildFailed."""
    deadline_s = time.monotonic() + GONE_WITHIN_S
    longest = child.ask("watch 1")
    while longest["connections"] > rest and time.monotonic() < deadline_s:
        time.sleep(0.2)
        now = child.ask("watch 1")
        longest = {name: max(longest[name], value) for name, value in now.items()} | {"connections": now["connections"]}
    if longest["connections"] > rest:
        raise ChildFailed(f"{longest['connections']:,.0f} clients are still connected")
    return longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("nodes", "channels", "members", "crowd"))
    parser.add_argument("size", type=int)
    options = parser.parse_args()
    files, size = raise_file_limit(), options.size
    match options.part:
        case "nodes":
            found: Sequence[object] = many_nodes((size,), seconds=10.0)
        case "channels":
            found = [many_channels(size, CHANNELS_EACH)]
        case "members":
            found = rosters(size, JOINS)
        case _:
            found = crowd(size, files)
    print(*found, sep="\n")


if __name__ == "__main__":
    main()
