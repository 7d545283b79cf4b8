"""Which server of a Redis Cluster has a channel: learned from what the servers say.

A server that does not have a channel's slot answers MOVED, with the address of the one that has it, and has done
nothing: so it is remembered, and asked the next time. When a server is lost, what was known of it is forgotten, and
another one is asked.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis.connection import ConnectionPool

__all__ = ["Cluster", "Server"]

Address = tuple[str, int]


class Server:
    """One Redis, or a primary that Sentinel tells: one pool for all channels."""

    is_sharded = False  # in a Cluster publications go by SPUBLISH

    def __init__(self, pool: "ConnectionPool", *, is_fixed: bool = True) -> None:
        self._pool = pool
        self.is_fixed = is_fixed  # no other server can take its place

    def pool(self, name: str) -> "ConnectionPool":
        """Give the pool for a channel."""
        return self._pool

    def lost(self, pool: "ConnectionPool") -> None:
        """Know that a connection failed."""

    def moved(self, name: str, address: Address) -> None:
        """Know where a channel is."""

    def disconnect(self) -> None:
        """Let go of all connections."""
        self._pool.disconnect()


class Cluster(Server):
    """The servers of one Cluster. seeds: some of them. Its dictionaries' single operations are atomic: no lock."""

    is_sharded = True

    def __init__(self, seeds: Sequence[Address], make: Callable[[Address], "ConnectionPool"]) -> None:
        self.is_fixed = False
        self._make = make
        self._pools = {address: make(address) for address in seeds}
        self._first = 0  # which of them is asked for what is not known
        self._addresses: dict[int, Address] = {}  # by slot

    def pool(self, name: str) -> "ConnectionPool":
        """Give the pool of the server that has a channel, or that may know who has it."""
        address = self._addresses.get(_slot(name))
        if address is None:
            known = list(self._pools)
            address = known[self._first % len(known)]
        return self._pools[address]

    def lost(self, pool: "ConnectionPool") -> None:
        """Forget what a server has, and ask another one."""
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
        """Let go of all connections."""
        for pool in list(self._pools.values()):
            pool.disconnect()


def _slot(name: str) -> int:
    from redis.crc import key_slot

    slot: int = key_slot(name.encode())
    return slot
