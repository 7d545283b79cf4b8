"""The interface to the control orders of the cluster: what a backend orders all nodes to do with their clients.

`snorky.gateway.redis.control` implements it; one test suite checks it.

Rules:
- An order is stored for KEEP_S. Every node waits for new orders without pub/sub. A node that was paused or cut off
  continues after the last order that it read.
- A node begins with the orders given since it started: it has no older connections.
- A log may report an order twice, after Redis was restored from an older copy, or because several Redis have it. The
  receiver carries out each order once, by its id.
- If a node may have missed orders because it was away for longer than they are stored, it is notified.
- At most ORDERS_MAX orders are stored, and each has at most ORDER_MAX_BYTES. Above that a new order is refused: no
  stored one is discarded for it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from snorky.gateway.errors import LimitExceeded

__all__ = [
    "KEEP_S",
    "ORDERS_MAX",
    "ORDER_MAX_BYTES",
    "ControlLog",
    "ControlOrder",
    "LocalControlLog",
    "OnOrders",
    "encode_order",
]

KEEP_S: Final = 60.0  # other nodes take a paused node for dead after 15 s
ORDERS_MAX: Final = 10_000
ORDER_MAX_BYTES: Final = 2048  # an identity, a channel and a reason, each of up to 255 bytes, escaped


class ControlOrder(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One order, or question. It applies to the connections that match all of identity, connection_id and channel; None
    matches any.

    id: unguessable. channel: its name, as `codec.channel_name` returns it. service: that of the channel. code: a close
    code, for "disconnect". reason: for the client. target, recover: of "subscribe": the channel's name; True, False or
    a position, as in a client's `subscribe`. claims: of "refresh": None = the present ones remain. expires_in_s: of the
    subscription, or for "refresh" of the connection; None = as it is. Questions ("nodes", "connections", "channels")
    are for the first `limit` entries after a name, `after`; in "channels" the channel is a pattern, or the question is
    only for the channels with these `names`.
    """

    id: str
    command: Literal["disconnect", "subscribe", "unsubscribe", "refresh", "nodes", "connections", "channels"]
    service: str = ""
    identity: str | None = None
    connection_id: str | None = None
    channel: str | None = None
    code: int = 0
    reason: str = ""
    target: str | None = None
    recover: bool | str = True
    claims: dict[str, Any] | None = None
    expires_in_s: float | None = None
    after: str = ""
    limit: int = 0
    names: tuple[str, ...] = ()


OnOrders = Callable[[Sequence[ControlOrder]], None]


class ControlLog(Protocol):
    """The cluster's control orders. One per node. spread_s: within this time all nodes that work read a new order."""

    spread_s: float

    def begin(self, on_orders: OnOrders, on_missed: Callable[[], None]) -> None:
        """Call on_orders for every order from now on, in order; returns at once, and retries until Redis responds.

        on_missed: called when orders may have been missed. Neither may block.
        """

    async def stop(self) -> None:
        """Stop calling the callbacks. Idempotent."""

    async def add(self, order: ControlOrder) -> frozenset[str]:
        """Store an order, and return the ids of the nodes that hold a lease, or held one until recently.

        Raises BrokerUnavailable: it is not known whether it was stored. LimitExceeded: it was not.
        """

    async def acknowledge(self, order_id: str, result: bytes) -> None:
        """Report that this node has carried out an order, with its result: JSON. Raises BrokerUnavailable."""

    async def acknowledged(self, order_id: str) -> dict[str, bytes]:
        """Return the nodes that have carried out an order, with their results. Raises BrokerUnavailable."""


def encode_order(order: ControlOrder) -> bytes:
    """Encode an order as JSON. Raises LimitExceeded: larger than ORDER_MAX_BYTES."""
    data = msgspec.json.encode(order)
    if len(data) > ORDER_MAX_BYTES:
        raise LimitExceeded("control_order_bytes", f"An order takes at most {ORDER_MAX_BYTES} bytes", code="too_large")
    return data


class LocalControlLog:
    """The orders of one process, for a node without Redis."""

    spread_s = 0.0

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._on_orders: OnOrders | None = None
        self._results: dict[str, bytes] = {}  # of orders that are awaited now: the caller reads each once

    def begin(self, on_orders: OnOrders, on_missed: Callable[[], None]) -> None:
        """See ControlLog."""
        self._on_orders = on_orders

    async def stop(self) -> None:
        """See ControlLog."""
        self._on_orders = None

    async def add(self, order: ControlOrder) -> frozenset[str]:
        """See ControlLog."""
        encode_order(order)
        if self._on_orders is not None:
            asyncio.get_running_loop().call_soon(self._on_orders, (order,))
        return frozenset([self._node_id])

    async def acknowledge(self, order_id: str, result: bytes) -> None:
        """See ControlLog."""
        if len(self._results) >= ORDERS_MAX:
            del self._results[next(iter(self._results))]
        self._results[order_id] = result

    async def acknowledged(self, order_id: str) -> dict[str, bytes]:
        """See ControlLog."""
        result = self._results.pop(order_id, None)
        return {} if result is None else {self._node_id: result}
