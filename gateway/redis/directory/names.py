"""Claims: names that are unique in the cluster, stored in Redis: one hash for each kind of names."""

from typing import Final

import msgspec

from snorky.gateway.contracts.directory import Owner
from snorky.gateway.errors import LimitExceeded
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.directory.owned_index import OwnedName
from snorky.gateway.redis.keys import direct_prefix, names_key

__all__ = ["Claims"]

PAGE: Final = 1_000  # names, of at most 255 bytes each, with owners and identities
LIST_MAX_BYTES: Final = 16 << 20  # of names: no client accepts a longer list


class Claims:
    """Claims and finds names. The caller must index what it claims, and check its lease afterwards."""

    def __init__(self, scripts: Scripts, *, prefix: str) -> None:
        self._scripts = scripts
        self._prefix = prefix

    def claiming(self, owner: str, held: OwnedName, identity: str | None, *, is_taking_over: bool) -> Call:
        """Build the script call that claims a name. owner: NODE:INCARNATION.

        The call returns 1: claimed; 0: another owner has it; or, in a Cluster, the former owner (as `Owner` is
        written), whom the caller must notify. is_taking_over: take the name from another connection of the same
        identity, which is notified.
        """
        arguments = [
            held.name.encode(),
            f"{owner}:{held.serial}".encode(),
            b"0" if identity is None else b"1",
            (identity or "").encode(),
            b"1" if is_taking_over else b"0",
            b"" if self._scripts.is_sharded else direct_prefix(self._prefix),
            msgspec.json.encode([held.names, held.name]),
        ]
        return Call("claim", [names_key(self._prefix, held.names)], arguments)

    async def find(self, names: str, name: str) -> Owner | None:
        """Find the owner of a name; None = it is free. Raises BrokerUnavailable."""
        (value,) = await self._scripts.run(command(b"HGET", names_key(self._prefix, names), name.encode()))
        return None if value is None else Owner.parse(value.decode().partition(" ")[0])

    async def list_names(self, names: str) -> list[str]:
        """List all names that have an owner. Raises BrokerUnavailable; LimitExceeded: above LIST_MAX_BYTES."""
        key, cursor, size = names_key(self._prefix, names), b"0", 0
        found: set[bytes] = set()  # HSCAN may return a name twice
        while True:
            ((cursor, flat),) = await self._scripts.run(command(b"HSCAN", key, cursor, b"COUNT", b"%d" % PAGE))
            found.update(flat[::2])
            size += sum(map(len, flat[::2]))
            if size > LIST_MAX_BYTES:
                raise LimitExceeded("list_max_bytes", "Too many names to list", code="too_large")
            if cursor == b"0":
                return [name.decode() for name in found]
