"""LimitStore: the interface to what all nodes together count against limits.

`snorky.gateway.redis.limits` implements it; one test suite checks it.

Rules:
- A *unit* is one connection, subscription, ... that counts against a limit. The units of all living nodes for one name
  never exceed the limit's maximum.
- A node's units are freed when it has not renewed them for 8 s, by the clock of Redis. It renews them every 2 s.
- Rates need no units: each node reports the *demand* of its active names, and learns that of the other nodes.
- A node that could not renew in time, or whose Redis lost its data, takes its units again. Those that other nodes
  took meanwhile are lost, and the node ends what they counted.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from snorky.gateway.errors import BrokerUnavailable

__all__ = ["LimitStore", "LocalLimitStore", "Name", "OnLost", "SharedUnits"]

Name = tuple[str, str]  # limit, and the identity, address or channel
OnLost = Callable[[str, str, int], None]  # limit, name, how many units this node has lost


class LimitStore(Protocol):
    """The units of one node. limit: a literal without blanks. name: an identity, for example."""

    def start(self, on_lost: OnLost) -> None:
        """Begin to connect and to renew; returns at once. on_lost: must end what these units counted; must not block.

        The caller still gives lost units back when what they counted has ended.
        """

    async def stop(self) -> None:
        """Free all units of this node, if Redis answers. Idempotent."""

    async def take(self, limit: str, name: str, units: int, maximum: int) -> bool:
        """Take units; False = all nodes together would have more than the maximum, and nothing was taken.

        maximum: 0 = none. Raises BrokerUnavailable: nothing was taken.
        """

    def give_back(self, limit: str, name: str, units: int) -> None:
        """Give units back; never waits, and is repeated until Redis has confirmed it."""

    def is_current(self, limit: str, name: str) -> bool:
        """True while the units that this node holds cannot have expired."""

    @property
    def nodes(self) -> int:
        """How many nodes count, as far as this node knows; at least 1, itself."""

    async def exchange(self, demands: Mapping[Name, float]) -> dict[Name, float]:
        """Report the demands of this node, for 3 s, in place of those reported before; returns those of all others.

        Raises BrokerUnavailable.
        """


class SharedUnits:
    """The units and demands of nodes in one process. is_failing: all that waits raises BrokerUnavailable."""

    def __init__(self) -> None:
        self.is_failing = False
        self.by_node: dict[str, dict[Name, int]] = {}
        self.demands: dict[str, Mapping[Name, float]] = {}
        self.nodes: set[str] = set()

    def total(self, limit: str, name: str) -> int:
        """Return the units of all nodes."""
        return sum(units.get((limit, name), 0) for units in self.by_node.values())


class LocalLimitStore:
    """The units of one process: of a node without Redis, or of several nodes that share them in a test."""

    def __init__(self, shared: SharedUnits | None = None, node_id: str = "") -> None:
        self._shared = shared or SharedUnits()
        self._node_id = node_id

    def start(self, on_lost: OnLost) -> None:
        """See LimitStore. Nothing is lost here."""
        self._shared.nodes.add(self._node_id)

    async def stop(self) -> None:
        """See LimitStore."""
        self.die()

    def die(self) -> None:
        """Free all units of this node."""
        self._shared.by_node.pop(self._node_id, None)
        self._shared.demands.pop(self._node_id, None)
        self._shared.nodes.discard(self._node_id)

    async def take(self, limit: str, name: str, units: int, maximum: int) -> bool:
        """See LimitStore."""
        if self._shared.is_failing:
            raise BrokerUnavailable("limits")
        if maximum and self._shared.total(limit, name) + units > maximum:
            return False
        own = self._shared.by_node.setdefault(self._node_id, {})
        own[limit, name] = own.get((limit, name), 0) + units
        return True

    def give_back(self, limit: str, name: str, units: int) -> None:
        """See LimitStore."""
        own = self._shared.by_node.get(self._node_id, {})
        left = own.get((limit, name), 0) - units
        if left > 0:
            own[limit, name] = left
        else:
            own.pop((limit, name), None)

    def is_current(self, limit: str, name: str) -> bool:
        """See LimitStore."""
        return not self._shared.is_failing

    @property
    def nodes(self) -> int:
        """See LimitStore."""
        return max(1, len(self._shared.nodes))

    async def exchange(self, demands: Mapping[Name, float]) -> dict[Name, float]:
        """See LimitStore."""
        if self._shared.is_failing:
            raise BrokerUnavailable("limits")
        self._shared.demands[self._node_id] = dict(demands)
        others = [each for node, each in self._shared.demands.items() if node != self._node_id]
        return {name: sum(each.get(name, 0.0) for each in others) for name in demands}
