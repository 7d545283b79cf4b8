"""Versions: finds nodes on the same Redis with an incompatible version. A node's state contains its versions.

Rules:
- `WIRE` is the version of the data that nodes write for each other in Redis: names of keys and channels, headers,
  rosters, leases. It is increased when data is written that the previous version cannot read.
- A node reads the versions from `OLDEST` on. Each release reads what the previous release writes, so a new format is
  read in one release and written in the next.
- A node that reports no version has version 1: it is older than the channels on which only nodes publish.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog

from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.directory.node_states import NodeState

__all__ = ["OLDEST", "WIRE", "Versions", "foreign_nodes", "said"]

WIRE: Final = 2
OLDEST: Final = 2
_UNSAID: Final = 1

_log = structlog.get_logger("snorky.redis")


def said() -> dict[str, int]:
    """Return this node's versions, for its state."""
    return {"wire": WIRE, "wire_oldest": OLDEST}


def foreign_nodes(nodes: Sequence[NodeState]) -> dict[str, int]:
    """Find the nodes that this version cannot read, or that cannot read this version: id -> wire version."""
    found = {}
    for node in nodes:
        wire, oldest = _number(node.state, "wire"), _number(node.state, "wire_oldest")
        if wire < OLDEST or oldest > WIRE:
            found[node.node_id] = wire
    return found


class Versions:
    """Watches the versions of the other living nodes; sets a metric and logs."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._foreign: dict[str, int] = {}

    def see(self, nodes: Sequence[NodeState]) -> None:
        """Check all living nodes; logs when the set of incompatible ones changes."""
        foreign = foreign_nodes(nodes)
        self._metrics.nodes_incompatible.set(len(foreign))
        if foreign != self._foreign:
            shown = dict(sorted(foreign.items())[:10])
            if foreign:
                _log.warning("nodes of an incompatible version", wire=WIRE, oldest=OLDEST, nodes=shown)
            else:
                _log.info("no node has an incompatible version any more")
        self._foreign = foreign


def _number(state: Mapping[str, Any], name: str) -> int:
    value = state.get(name, _UNSAID)
    return value if type(value) is int else _UNSAID
