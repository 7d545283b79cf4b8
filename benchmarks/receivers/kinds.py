"""The kinds of clients: how the clients of a protocol connect and subscribe to the channel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.support.message import PATH, centrifuge, centrifuge_protobuf, pusher, subscribe

__all__ = ["CENTRIFUGE", "CENTRIFUGE_PROTOBUF", "PLAIN", "PUSHER", "SNORKY", "SOCKET_IO", "Kind"]


@dataclass(frozen=True, slots=True)
class Kind:
    """The arguments of a Receiver that are about the protocol.

    subscribe: what a client sends to subscribe to the channel of that name; None = the clients send nothing.
    """

    name: str
    path: str = PATH
    subscribe: Callable[[str], str | bytes] | None = None
    replies: int = 1


PLAIN: Final = Kind("WebSocket")
SNORKY: Final = Kind("Snorky", subscribe=subscribe)
CENTRIFUGE: Final = Kind("Centrifuge, JSON", "/connection/websocket", centrifuge, 2)
CENTRIFUGE_PROTOBUF: Final = Kind(
    "Centrifuge, Protobuf", "/connection/websocket?format=protobuf", centrifuge_protobuf, 2
)
PUSHER: Final = Kind("Pusher", "/app/bench?protocol=7", pusher, 2)
# Engine.IO sends a first text itself; "40" connects to the default namespace, and is answered
SOCKET_IO: Final = Kind("Socket.IO", "/socket.io/?EIO=4&transport=websocket", lambda _: "40", 2)
