"""Groups: the subscribers of a channel by dialect.

Nearly all channels have subscribers of one dialect. A dictionary for it would be a fifth of the memory of a channel
with one subscriber, and a node may have a million of them.
"""

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Final, TypeVar, cast

from snorky.gateway.connection.connection import Connection
from snorky.gateway.protocol.ws_frames import Dialect

__all__ = ["NO_GROUP", "Group", "Groups"]

Group = dict[Connection, int]  # with the number of its subscription
NO_GROUP: Final = cast(Group, MappingProxyType({}))  # nothing can be written to it
_Default = TypeVar("_Default")


class Groups:
    """A mapping of dialects to groups, in the order in which they came. No group in it is empty for long."""

    __slots__ = ("_dialect", "_group", "_others")

    def __init__(self) -> None:
        self._dialect: Dialect | None = None  # None = there is no group
        self._group: Group = NO_GROUP
        self._others: dict[Dialect, Group] | None = None

    def __bool__(self) -> bool:
        return self._dialect is not None

    def __iter__(self) -> Iterator[Dialect]:
        return iter([dialect for dialect, _ in self.items()])

    def items(self) -> Sequence[tuple[Dialect, Group]]:
        """Return dialects with their groups."""
        if self._dialect is None:
            return ()
        first = (self._dialect, self._group)
        return (first,) if self._others is None else (first, *self._others.items())

    def values(self) -> Sequence[Group]:
        """Return the groups."""
        return [group for _, group in self.items()]

    def get(self, dialect: Dialect, default: _Default) -> Group | _Default:
        """Return the group of a dialect."""
        if dialect is self._dialect:
            return self._group
        return default if self._others is None else self._others.get(dialect, default)

    def of(self, dialect: Dialect) -> Group:
        """Return the group of a dialect; a new one if there was none, to which the caller adds a subscriber."""
        if self._dialect is None:
            self._dialect, self._group = dialect, {}
        if dialect is self._dialect:
            return self._group
        if self._others is None:
            self._others = {}
        return self._others.setdefault(dialect, {})

    def discard(self, dialect: Dialect, connection: Connection) -> bool:
        """Remove a subscriber, and its group if that is empty then. False = it was not in it."""
        group = self.get(dialect, NO_GROUP)
        if connection not in group:
            return False
        del group[connection]
        if not group:
            self._remove(dialect)
        return True

    def _remove(self, dialect: Dialect) -> None:
        others = self._others or {}
        if dialect is not self._dialect:
            del others[dialect]
        elif others:
            self._dialect = next(iter(others))
            self._group = others.pop(self._dialect)
        else:
            self._dialect, self._group = None, NO_GROUP
        if not others:
            self._others = None
