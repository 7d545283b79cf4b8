"""How many messages of clients one node takes: every connection calls again as soon as it is answered.

All servers run with all their clients and take turns, so that a busy minute of the machine affects all of them.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.receivers.receiver import Receiver
from benchmarks.servers.variants import BEFORE, GATEWAY, echo, gateway
from benchmarks.support.child import Child, ChildFailed
from benchmarks.support.compiler import compiled
from benchmarks.support.machine import receiver_cpu

__all__ = ["ECHO", "Inbound", "flood"]

CALL = {"service": "echo", "message": {"command": "ping", "params": {}, "callId": 1}}
ECHO = "bare uvloop Protocol, an echo"


@dataclass(frozen=True, slots=True)
class Inbound:
    """One server; each figure is the median of its repetitions."""

    name: str
    connections: int
    messages: int
    us_each: float  # CPU of the server, reply included
    per_s: float
    x_echo: float  # CPU in relation to the echo in the same repetition


def flood(*, connections: int, messages: int, repetitions: int, before: Path | None = None) -> list[Inbound]:
    """Call a command that only answers, that many times. before: a clone whose node takes turns with ours.

    Returns the echo first; nothing: the receiver in Python cannot. Raises ChildFailed.
    """
    if compiled("receivers/receiver") is None:
        return []
    call = json.dumps(CALL, separators=(",", ":"))
    servers: dict[str, Callable[[], Child]] = {ECHO: echo, f"{GATEWAY}, an RPC call": gateway}
    if before is not None:
        servers[f"{BEFORE}, an RPC call"] = partial(gateway, folder=before)
    us_each: dict[str, list[float]] = {name: [] for name in servers}
    per_s: dict[str, list[float]] = {name: [] for name in servers}
    with ExitStack() as stack:
        running: list[tuple[str, Child, Receiver]] = []
        for name, start in servers.items():
            server = stack.enter_context(start())
            port = int(server.answer()["port"])
            running.append((name, server, stack.enter_context(Receiver(port, connections, cpu=receiver_cpu()))))
        for repetition in range(1 + repetitions):
            running.reverse()
            for name, server, receiver in running:
                before_s = server.cpu_s()
                counts = receiver.ask(f"flood {messages} 1 {call}")
                cpu_s = server.cpu_s() - before_s
                if counts["messages"] != messages:
                    raise ChildFailed(f"{name}: expected {messages} replies: {counts}")
                if repetition:  # the first warms up
                    us_each[name].append(cpu_s * 1e6 / messages)
                    per_s[name].append(messages / counts["elapsed_s"])
    ratios = {name: median(map(float.__truediv__, found, us_each[ECHO])) for name, found in us_each.items()}
    return [
        Inbound(name, connections, messages, median(us_each[name]), median(per_s[name]), ratios[name])
        for name in servers
    ]
