"""The variants: how each is started, and how it is made to deliver."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.receivers.kinds import PLAIN, SNORKY, Kind
from benchmarks.receivers.receiver import Receiver
from benchmarks.servers.redis_server import RedisServer, request
from benchmarks.support.child import Child
from benchmarks.support.compiler import compiled
from benchmarks.support.machine import receiver_cpu, server_cpu
from benchmarks.support.message import channel_name, compact, frame, payload, redis_channel

__all__ = [
    "BASELINE",
    "BASELINE_RING",
    "BEFORE",
    "GATEWAY",
    "NAIVE",
    "NAIVE_CONNECTION",
    "THROUGH_REDIS",
    "Rig",
    "Variant",
    "c_loop",
    "echo",
    "from_within",
    "gateway",
    "gateway_module",
    "naive",
    "variants",
]

BASELINE = "C loop of send()"
BASELINE_RING = "C loop of io_uring"
NAIVE = "aiohttp send_str, encoded per client"
NAIVE_CONNECTION = "aiohttp WebSocketResponse"
GATEWAY = "this gateway"
BEFORE = "the gateway before"
THROUGH_REDIS = ", through Redis"
# In production the clients run elsewhere: a server does not pay for waking them. Here it would, 1-2 us a send() in a
# virtual machine, and a slow sender more often than a fast one; so the receiver never sleeps until woken, it polls.
NAP_US = 1000
QUIET_S = 3600.0  # four pings a second to a node's first clients, no more: no other variant sends pings


@dataclass(frozen=True, slots=True)
class Variant:
    """One row: name as in the table; start(connections) makes a Rig, with everything connected."""

    name: str
    start: Callable[[int], "Rig"]


class Rig:
    """A server and its receivers, ready to be measured.

    kinds: of its clients, in equal parts, each with a receiver. channel: of theirs, its number. port: of the server;
    None = it tells it first.
    """

    def __init__(
        self,
        server: Child,
        connections: int,
        *,
        is_raw: bool = False,
        kinds: Sequence[Kind] = (PLAIN,),
        channel: int = 0,
        port: int | None = None,
    ) -> None:
        self.server = server
        self.connections = connections
        self._channel = channel
        self._receivers: list[Receiver] = []
        self._connections_each, rest = divmod(connections, len(kinds))
        try:
            if rest:
                raise ValueError(f"{connections} clients are not {len(kinds)} equal parts")
            port = int(server.answer()["port"]) if port is None else port
            for kind in kinds:
                self._receivers.append(
                    Receiver(
                        port,
                        self._connections_each,
                        cpu=receiver_cpu(),
                        is_raw=is_raw,
                        path=kind.path,
                        send=None if kind.subscribe is None else kind.subscribe(channel_name(channel)),
                        replies=kind.replies,
                        nap_us=NAP_US,
                    )
                )
        except BaseException:
            Rig.stop(self)
            raise

    def stop(self) -> None:
        """End all processes."""
        for receiver in self._receivers:
            receiver.stop()
        self.server.stop()

    def cpu_s(self, passes: int, burst: int) -> float:
        """Deliver `burst` messages at once to all clients, `passes` times. Returns CPU seconds of the server.

        Raises ChildFailed: not everything arrived.
        """
        for receiver in self._receivers:
            receiver.mark()
        before = self.server.cpu_s()
        self._deliver(passes, burst)
        self._receive(passes * burst)
        return self.server.cpu_s() - before

    def _receive(self, messages: int) -> None:
        """Wait until each client has that many messages since the mark. Raises ChildFailed."""
        for receiver in self._receivers:
            receiver.wait(messages * self._connections_each)

    def _deliver(self, passes: int, burst: int) -> None:
        # the pause lets the receiver drain, so that every pass finds the sockets empty, whatever the variant
        gap_us = 2000 + 3 * self.connections * burst
        self.server.ask(f"pass {passes} {burst} {gap_us}" + (f" {self._channel}" if self._channel else ""))


class _RedisRig(Rig):
    """A gateway with a Redis of its own: publications reach no other variant."""

    def __init__(self, redis: RedisServer, server: Child, connections: int) -> None:
        super().__init__(server, connections, kinds=(SNORKY,))
        self._redis = redis
        self._publisher = redis.connect()

    def _deliver(self, passes: int, burst: int) -> None:
        publications = request(b"PUBLISH", redis_channel().encode(), compact(payload())) * burst
        for done in range(1, passes + 1):
            self._publisher.sendall(publications)
            replies = b""
            while replies.count(b"\n") < burst:
                replies += self._publisher.recv(65536)
            self._receive(done * burst)

    def stop(self) -> None:
        self._publisher.close()
        super().stop()
        self._redis.stop()


def naive(encode: str, loop: str) -> Child:
    """Start the typical aiohttp server; see naive_server."""
    return Child([sys.executable, "-m", "benchmarks.servers.naive_server", encode, loop], cpu=server_cpu())


def echo() -> Child:
    """Start the bare Protocol; see echo_server."""
    return Child([sys.executable, "-m", "benchmarks.servers.echo_server"], cpu=server_cpu())


def gateway_module(folder: Path) -> str:
    """Name the module that runs a clone's node, also where benchmarks has no folders yet; "": there is none."""
    for module in ("benchmarks.servers.gateway_server", "benchmarks.gateway_server"):
        if (folder / f"{module.replace('.', '/')}.py").is_file():
            return module
    return ""


def gateway(
    redis_url: str = "", *, ping_interval_s: float = 10.0, folder: Path | None = None, native_fanout: str = ""
) -> Child:
    """Start a node of this gateway; see gateway_server. redis_url "": publications come from within.

    folder: of another clone, whose node it is. native_fanout: the setting of that name; "": the default.
    """
    module = gateway_module(folder or Path(__file__).parents[2])
    argv = [sys.executable, "-m", module, str(ping_interval_s), redis_url]
    argv += [native_fanout] if native_fanout else []  # versions before do not take it
    return Child(argv, cpu=server_cpu(), folder=folder)


def c_loop(connections: int, *, by_ring: bool = False) -> Rig:
    """Start the loop in C; see sendloop.c. Raises ChildFailed: by_ring, and io_uring is not allowed."""
    argv = [str(compiled("servers/sendloop")), frame().hex(), *(["io_uring"] if by_ring else [])]
    return Rig(Child(argv, cpu=server_cpu()), connections, is_raw=True)


def from_within(folder: Path | None = None, native_fanout: str = "") -> Callable[[int], Rig]:
    """Start a node whose publications come from within. Parameters: see `gateway`."""

    def start(connections: int) -> Rig:
        node = gateway(ping_interval_s=QUIET_S, folder=folder, native_fanout=native_fanout)
        return Rig(node, connections, kinds=(SNORKY,))

    return start


def variants(*, has_redis: bool, before: Path | None = None) -> list[Variant]:
    """All variants that can run here; the baseline first, if there is a compiler. before: a clone to compare with."""

    def aiohttp(encode: str, loop: str) -> Callable[[int], Rig]:
        return lambda connections: Rig(naive(encode, loop), connections)

    def through_redis(folder: Path | None) -> Callable[[int], Rig]:
        def start(connections: int) -> Rig:
            redis = RedisServer()
            try:
                return _RedisRig(redis, gateway(redis.url, ping_interval_s=QUIET_S, folder=folder), connections)
            except BaseException:
                redis.stop()
                raise

        return start

    found = [Variant(BASELINE, c_loop)] if compiled("servers/sendloop") else []
    found += [
        Variant(NAIVE, aiohttp("each", "asyncio")),
        Variant("aiohttp send_str, encoded once", aiohttp("once", "asyncio")),
        Variant(f"{NAIVE}, uvloop", aiohttp("each", "uvloop")),
    ]
    for name, folder in [(GATEWAY, None)] + ([] if before is None else [(BEFORE, before)]):
        found.append(Variant(name, from_within(folder)))
        if has_redis:
            found.append(Variant(name + THROUGH_REDIS, through_redis(folder)))
    return found
