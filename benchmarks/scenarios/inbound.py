"""How many messages of clients one node takes: every connection calls again as soon as it is answered."""

import json
from dataclasses import dataclass

from benchmarks.receivers.receiver import Receiver
from benchmarks.servers.variants import gateway
from benchmarks.support.child import ChildFailed
from benchmarks.support.compiler import compiled
from benchmarks.support.machine import receiver_cpu

__all__ = ["Inbound", "flood"]

CALL = {"service": "echo", "message": {"command": "ping", "params": {}, "callId": 1}}


@dataclass(frozen=True, slots=True)
class Inbound:
    """One run."""

    name: str
    connections: int
    messages: int
    us_each: float  # CPU of the node, reply included
    per_s: float


def flood(*, connections: int, messages: int) -> Inbound | None:
    """Call a command that only answers, that many times. None: the receiver in Python cannot. Raises ChildFailed."""
    if compiled("receivers/receiver") is None:
        return None
    call = json.dumps(CALL, separators=(",", ":"))
    with gateway() as server, Receiver(int(server.answer()["port"]), connections, cpu=receiver_cpu()) as receiver:
        receiver.ask(f"flood {messages // 10} 1 {call}")  # warms up and does not count
        before_s = server.cpu_s()
        counts = receiver.ask(f"flood {messages} 1 {call}")
        cpu_s = server.cpu_s() - before_s
    if counts["messages"] != messages:
        raise ChildFailed(f"expected {messages} replies: {counts}")
    per_s = messages / counts["elapsed_s"]
    return Inbound("RPC call and its reply", connections, messages, cpu_s * 1e6 / messages, per_s)
