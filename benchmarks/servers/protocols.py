"""One node whose clients use one protocol or several: the cost of a delivery by the protocol.

All clients are those of one node, with a channel for each row. Processes differ by some percent in how their memory
lies, which repetitions do not average out; as do two channels of one kind of clients, if each has a node of its own.
"""

from collections.abc import Callable
from typing import Final

from benchmarks.receivers.kinds import CENTRIFUGE, CENTRIFUGE_PROTOBUF, PUSHER, SNORKY, Kind
from benchmarks.servers.variants import QUIET_S, Rig, Variant, gateway
from benchmarks.support.child import Child

__all__ = ["MIXED", "SNORKY_AGAIN", "SNORKY_ALONE", "protocols"]

SNORKY_ALONE: Final = SNORKY.name
SNORKY_AGAIN: Final = "Snorky, again"
MIXED: Final = "a quarter of each"
ROWS: Final = {
    SNORKY_ALONE: (SNORKY,),
    SNORKY_AGAIN: (SNORKY,),
    **{each.name: (each,) for each in (CENTRIFUGE, CENTRIFUGE_PROTOBUF, PUSHER)},
    MIXED: (SNORKY, CENTRIFUGE, CENTRIFUGE_PROTOBUF, PUSHER),
}


class _Node:
    """A node, started for its first clients."""

    def __init__(self) -> None:
        self._server: Child | None = None
        self._port = 0

    def rig(self, channel: int, kinds: tuple[Kind, ...], connections: int) -> Rig:
        """Connect clients, and subscribe them to the channel with this number."""
        if self._server is None:
            self._server = gateway(ping_interval_s=QUIET_S)
            self._port = int(self._server.answer()["port"])
        return Rig(self._server, connections, kinds=kinds, channel=channel, port=self._port)


def protocols() -> list[Variant]:
    """A channel of the clients of each kind, Snorky's own first and twice, and one of all kinds in equal parts.

    The second of Snorky's shows the error of the measurement.
    """
    node = _Node()

    def with_channel(channel: int, kinds: tuple[Kind, ...]) -> Callable[[int], Rig]:
        return lambda connections: node.rig(channel, kinds, connections)

    return [Variant(name, with_channel(channel, kinds)) for channel, (name, kinds) in enumerate(ROWS.items(), 1)]
