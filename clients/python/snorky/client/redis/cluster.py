"""Which server of a Redis Cluster has a channel's slot, learned from MOVED replies.

A server that does not have the slot replies MOVED with the address of the one that has it, and executes nothing. The
address is stored for the next attempt. When a connection to a server fails, its slots are forgotten and another server
is asked.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

__all__ = ["Cluster", "Server"]

Address = tuple[str, int]


class Server:
    """One Redis, or the primary that Sentinel reports: one pool for all channels."""

    is_sharded = False  # a Cluster uses SPUBLISH

    def __init__(self, pool: "ConnectionPool", *, is_fixed: bool = True) -> None:
        self._pool = pool
        self.is_fixed = is_fixed  # no other server can replace it

    def pool(self, name: str) -> "ConnectionPool":
        """Return the pool for a channel."""
        return self._pool

    def lost(self, pool: "ConnectionPool") -> None:
        """Handle a failed connection."""

    def moved(self, name: str, address: Address) -> None:
        """Handle a MOVED reply for a channel."""

    def disconnect(self) -> None:
        """Close all connections."""
        self._pool.disconnect()


class Cluster(Server):
    """The servers of one Cluster. seeds: some of them. Thread-safe: every dict operation here is atomic."""

    is_sharded = True

    def __init__(self, seeds: Sequence[Address], make: Callable[[Address], "ConnectionPool"]) -> None:
        self.is_fixed = False
        self._make = make
        self._pools = {address: make(address) for address in seeds}
        self._first = 0  # index of the server to ask for unknown slots
        self._addresses: dict[int, Address] = {}  # by slot

    def pool(self, name: str) -> "ConnectionPool":
        """Return the pool of the server that has a channel, or of one that can reply MOVED."""
        address = self._addresses.get(_slot(name))
        if address is None:
            known = list(self._pools)
            address = known[self._first % len(known)]
        return self._pools[address]

    def lost(self, pool: "ConnectionPool") -> None:
        """Forget a server's slots, and ask another server next."""
        for slot, address in list(self._addresses.items()):
            if self._pools[address] is pool:
                self._addresses.pop(slot, None)
        self._first += 1

    def moved(self, name: str, address: Address) -> None:
        """Remember which server has a channel."""
        if address not in self._pools:
            self._pools[address] = self._make(address)
        self._addresses[_slot(name)] = address

    def disconnect(self) -> None:
        """Close all connections."""
        for pool in list(self._pools.values()):
            pool.disconnect()


def _slot(name: str) -> int:
    from redis.crc import key_slot

    slot: int = key_slot(name.encode())
    return slot
