"""Claims: names that are unique in the cluster, in Redis. A hash for each kind of names."""

import msgspec

from gateway.directory import Owner
from gateway.redis.estate import NameHeld
from gateway.redis.names import direct_prefix, names_key
from gateway.redis.scripting import Call, Scripts
from gateway.redis.wire import command

__all__ = ["Claims"]


class Claims:
    """Claims and finds. What is claimed is indexed and checked by who calls it."""

    def __init__(self, scripts: Scripts, *, prefix: str) -> None:
        self._scripts = scripts
        self._prefix = prefix

    def claiming(self, owner: str, held: NameHeld, identity: str | None, *, is_taking_over: bool) -> Call:
        """Make the call that claims a name. owner: NODE:INCARNATION. Its answer: 1, or 0: somebody else has it; or,
        in a Cluster, who lost it and is to be told, as `Owner` is written.

        is_taking_over: from the same identity, if another connection of it holds the name; that one is told.
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
        """Tell who holds a name. Raises BrokerUnavailable."""
        (value,) = await self._scripts.run(command(b"HGET", names_key(self._prefix, names), name.encode()))
        return None if value is None else Owner.parse(value.decode().partition(" ")[0])

    async def list_names(self, names: str) -> list[str]:
        """List all names that are held. Raises BrokerUnavailable."""
        (answer,) = await self._scripts.run(command(b"HKEYS", names_key(self._prefix, names)))
        return [name.decode() for name in answer]
