"""The control orders and server-side subscriptions of a cluster in one process; no network, no time.

They pass the contract tests.
"""

import asyncio
from collections.abc import Callable

from snorky.gateway.contracts.control import ControlOrder, OnOrders, encode_order
from snorky.gateway.contracts.subscriptions import LocalSubscriptionStore, StoredSubscription
from snorky.gateway.errors import BrokerUnavailable

__all__ = ["MemoryControlLog", "MemorySubscriptionStore", "SharedOrders"]


class MemorySubscriptionStore(LocalSubscriptionStore):
    """The stored subscriptions that all nodes share; a call takes a loop iteration, and fails as orders do."""

    def __init__(self, shared: "SharedOrders") -> None:
        super().__init__()
        self._shared = shared

    async def add(self, identity: str, subscription: StoredSubscription) -> None:
        """See SubscriptionStore."""
        await self._shared.travel()
        await super().add(identity, subscription)

    async def remove(self, identity: str, service: str, channel: str | None) -> None:
        """See SubscriptionStore."""
        await self._shared.travel()
        await super().remove(identity, service, channel)

    async def find(self, identity: str) -> list[StoredSubscription]:
        """See SubscriptionStore; what it returns was stored a loop iteration ago."""
        found = await super().find(identity)
        await self._shared.travel()
        return found


class SharedOrders:
    """The orders that nodes share. is_failing: every call raises BrokerUnavailable. logs: of the living nodes."""

    def __init__(self) -> None:
        self.orders: list[ControlOrder] = []
        self.results: dict[str, dict[str, bytes]] = {}
        self.is_failing = False
        self.logs: dict[str, MemoryControlLog] = {}

    async def travel(self) -> None:
        """Take a loop iteration, as a network takes time. Raises BrokerUnavailable."""
        await asyncio.sleep(0)
        if self.is_failing:
            raise BrokerUnavailable("control")


class MemoryControlLog:
    """Implements `contracts.control.ControlLog`. Between `hold` and `let_go` the node reads nothing."""

    spread_s = 0.0

    def __init__(self, shared: SharedOrders, node_id: str) -> None:
        self._shared = shared
        self._node_id = node_id
        self._on_orders: OnOrders | None = None
        self._read = 0  # how many orders
        self._is_held = False

    def begin(self, on_orders: OnOrders, on_missed: Callable[[], None]) -> None:
        """See ControlLog."""
        self._on_orders, self._read = on_orders, len(self._shared.orders)
        self._shared.logs[self._node_id] = self

    async def stop(self) -> None:
        """See ControlLog."""
        self.die()

    def die(self) -> None:
        """End without a notice; the other nodes do not expect results of this one any more."""
        self._on_orders = None
        self._shared.logs.pop(self._node_id, None)

    def hold(self) -> None:
        """Read no orders for now."""
        self._is_held = True

    def let_go(self) -> None:
        """Read the orders that were given meanwhile."""
        self._is_held = False
        self.read()

    def read(self) -> None:
        """Report new orders."""
        if self._on_orders is not None and not self._is_held:
            orders, self._read = self._shared.orders[self._read :], len(self._shared.orders)
            if orders:
                self._on_orders(orders)

    async def add(self, order: ControlOrder) -> frozenset[str]:
        """See ControlLog."""
        encode_order(order)
        await self._shared.travel()
        self._shared.orders.append(order)
        for log in self._shared.logs.values():
            asyncio.get_running_loop().call_soon(log.read)
        return frozenset(self._shared.logs)

    async def acknowledge(self, order_id: str, result: bytes) -> None:
        """See ControlLog."""
        await self._shared.travel()
        self._shared.results.setdefault(order_id, {})[self._node_id] = result

    async def acknowledged(self, order_id: str) -> dict[str, bytes]:
        """See ControlLog."""
        await self._shared.travel()
        return dict(self._shared.results.get(order_id, {}))
