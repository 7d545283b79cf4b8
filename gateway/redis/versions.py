"""Versions: which nodes on one Redis understand each other. Each says with its heartbeat what it writes and reads.

Rules:
- `WIRE` is the version of what nodes write for each other in Redis: names of keys and channels, headers, rosters,
  leases. It counts up when something is written that the version before does not read.
- A node reads the versions from `OLDEST` on. A release reads what the release before writes; so what is new is read in
  one release and written in the next.
- Nodes that say nothing are of version 1: they are older than the channels that only nodes write.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog

from gateway.metrics import Metrics
from gateway.redis.heartbeat import NodeState

__all__ = ["OLDEST", "WIRE", "Versions", "foreign_nodes", "said"]

WIRE: Final = 2
OLDEST: Final = 2
_UNSAID: Final = 1

_log = structlog.get_logger("snorky.redis")


def said() -> dict[str, int]:
    """Give what a node says of itself."""
    return {"wire": WIRE, "wire_oldest": OLDEST}


def foreign_nodes(nodes: Sequence[NodeState]) -> dict[str, int]:
    """Find the nodes that this version does not understand, or that do not understand it: id -> wire version."""
    found = {}
    for node in nodes:
        wire, oldest = _number(node.state, "wire"), _number(node.state, "wire_oldest")
        if wire < OLDEST or oldest > WIRE:
            found[node.node_id] = wire
    return found


class Versions:
    """Watches which nodes live beside this one."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._foreign: dict[str, int] = {}

    def see(self, nodes: Sequence[NodeState]) -> None:
        """Look at all living nodes; logs when those that do not fit change."""
        foreign = foreign_nodes(nodes)
        self._metrics.nodes_incompatible.set(len(foreign))
        if foreign != self._foreign:
            shown = dict(sorted(foreign.items())[:10])
            if foreign:
                _log.warning("nodes of an incompatible version", wire=WIRE, oldest=OLDEST, nodes=shown)
            else:
                _log.info("no nodes of an incompatible version any more")
        self._foreign = foreign


def _number(state: Mapping[str, Any], name: str) -> int:
    value = state.get(name, _UNSAID)
    return value if type(value) is int else _UNSAID
