"""Endpoint: what the connections of one endpoint share."""

from dataclasses import dataclass

from snorky.gateway.http.serving.accept_gate import AcceptGate
from snorky.gateway.http.websocket.admission import Admission
from snorky.gateway.http.websocket.timer_wheel import TimerWheel
from snorky.gateway.http.websocket.turns import Turns
from snorky.gateway.node import Node
from snorky.gateway.sdk.registry import ServiceRegistry

__all__ = ["Endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """State that the connections of one endpoint share."""

    node: Node
    registry: ServiceRegistry
    wheel: TimerWheel
    admission: Admission
    gate: AcceptGate
    turns: Turns

    def count_message(self, size: int, transport_name: str) -> None:
        """Count one message of a client. size: bytes of its payload."""
        metrics = self.node.metrics
        metrics.messages_received.labels(transport_name).value += 1
        metrics.received_bytes.value += size
