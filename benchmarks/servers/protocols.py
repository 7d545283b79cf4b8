"""One node whose clients use one protocol or several: the cost of a delivery by the protocol."""

from collections.abc import Callable
from typing import Final

from benchmarks.receivers.kinds import CENTRIFUGE, CENTRIFUGE_PROTOBUF, PUSHER, SNORKY, Kind
from benchmarks.servers.variants import QUIET_S, Rig, Variant, gateway

__all__ = ["MIXED", "SNORKY_ALONE", "protocols"]

KINDS: Final = (SNORKY, CENTRIFUGE, CENTRIFUGE_PROTOBUF, PUSHER)
SNORKY_ALONE: Final = SNORKY.name
MIXED: Final = "a quarter of each"


def protocols() -> list[Variant]:
    """A channel of the clients of each kind, Snorky's own first, and one of all kinds in equal parts."""

    def node_with(*kinds: Kind) -> Callable[[int], Rig]:
        return lambda connections: Rig(gateway(ping_interval_s=QUIET_S), connections, kinds=kinds)

    return [*(Variant(each.name, node_with(each)) for each in KINDS), Variant(MIXED, node_with(*KINDS))]
