"""LocalHoldings: the holdings (roster entries and names) of each connection of this node, and the pending cleanups.

Rules:
- The holdings of a connection are locked by one caller at a time. So operations for one connection do not overlap, and
  a delayed write cannot restore what was released meanwhile.
- A cleanup is pending for a write that may have succeeded although we reported a failure, and for a release that has
  not succeeded. If a write may still be in transit, the cleanup runs twice: soon, and again later.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from snorky.gateway.errors import ConnectionClosed
from snorky.gateway.redis.directory.owned_index import OwnedItem, OwnedName

__all__ = ["Holdings", "LocalHoldings"]


class Holdings:
    """The holdings of one connection. is_gone: the connection is closed and cannot get any."""

    __slots__ = ("all", "is_gone", "lock", "users")

    def __init__(self) -> None:
        self.all: set[OwnedItem] = set()
        self.lock = asyncio.Lock()
        self.users = 0
        self.is_gone = False


@dataclass(frozen=True, slots=True)
class _Cleanup:
    due: float  # loop time
    is_last: bool


class LocalHoldings:
    """The holdings and pending cleanups of one node. echo_s: time until the second run of a cleanup."""

    def __init__(self, *, echo_s: float) -> None:
        self._echo_s = echo_s
        self._holdings: dict[int, Holdings] = {}  # by serial
        self._cleanups: dict[tuple[str, OwnedItem], _Cleanup] = {}  # by NODE:INCARNATION and holding
        self._leaving: set[int] = set()

    @property
    def is_empty(self) -> bool:
        """True if there are no holdings and no pending cleanups."""
        return not self._holdings and not self._cleanups

    @property
    def has_cleanups(self) -> bool:
        """True if a cleanup is pending, or the release of a closed connection is not finished."""
        return bool(self._cleanups or self._leaving)

    def names(self) -> list[OwnedName]:
        """List all names that connections own."""
        every = (holding for holdings in self._holdings.values() for holding in holdings.all)
        return [holding for holding in every if isinstance(holding, OwnedName)]

    def holds(self, holding: OwnedItem) -> bool:
        """True if its connection has this holding."""
        holdings = self._holdings.get(holding.serial)
        return holdings is not None and holding in holdings.all

    @asynccontextmanager
    async def locked(self, serial: int) -> AsyncIterator[Holdings]:
        """Lock the holdings of a connection. Raises ConnectionClosed: the connection is closed."""
        async with self._lock(serial) as holdings:
            if holdings.is_gone:
                raise ConnectionClosed
            yield holdings

    @asynccontextmanager
    async def locked_all(self, wanted: Collection[OwnedItem]) -> AsyncIterator[dict[OwnedItem, Holdings]]:
        """Lock the connections of these holdings; yields those that still exist, with their connection's Holdings."""
        async with AsyncExitStack() as stack:
            # Only one caller at a time locks several connections, so there is no deadlock.
            serials = dict.fromkeys(holding.serial for holding in wanted)
            locked = {serial: await stack.enter_async_context(self._lock(serial)) for serial in serials}
            yield {each: locked[each.serial] for each in wanted if each in locked[each.serial].all}

    @asynccontextmanager
    async def leaving(self, serial: int) -> AsyncIterator[list[OwnedItem]]:
        """Lock a closed connection and remove all its holdings at the end. If cancelled, `left_over` lists it."""
        holdings = self._holdings.get(serial)
        if holdings is None:
            self._leaving.discard(serial)
            yield []
            return
        self._leaving.add(serial)
        holdings.is_gone = True  # from here on waiting callers get ConnectionClosed
        async with self._lock(serial):
            mine = list(holdings.all)
            yield mine
            holdings.all.clear()
        self._leaving.discard(serial)

    def left_over(self) -> list[int]:
        """List closed connections whose release is not finished."""
        return list(self._leaving)

    @asynccontextmanager
    async def _lock(self, serial: int) -> AsyncIterator[Holdings]:
        holdings = self._holdings.setdefault(serial, Holdings())
        holdings.users += 1
        try:
            async with holdings.lock:
                yield holdings
        finally:
            holdings.users -= 1
            if not holdings.users and not holdings.all and self._holdings.get(serial) is holdings:
                del self._holdings[serial]

    # -- pending cleanups --------------------------------------------------------------------------------------

    def schedule_cleanup(self, owner: str, holding: OwnedItem, *, is_under_way: bool) -> None:
        """Schedule a cleanup. is_under_way: its write may still be in transit, so it runs twice."""
        self._cleanups[owner, holding] = _Cleanup(asyncio.get_running_loop().time(), is_last=not is_under_way)

    def cancel_cleanup(self, owner: str, holding: OwnedItem) -> None:
        """Cancel a cleanup: the connection has the holding again."""
        self._cleanups.pop((owner, holding), None)

    def has_cleanup(self, owner: str, holding: OwnedItem) -> bool:
        """True while a cleanup of this holding is pending."""
        return (owner, holding) in self._cleanups

    def due_cleanups(self, max_count: int) -> list[tuple[str, OwnedItem]]:
        """List the cleanups that are due, as (NODE:INCARNATION, holding)."""
        now = asyncio.get_running_loop().time()
        found = []
        for key, cleanup in self._cleanups.items():
            if cleanup.due <= now:
                found.append(key)
                if len(found) == max_count:
                    break
        return found

    def cleanup_ran(self, owner: str, holding: OwnedItem) -> None:
        """Record that a cleanup has run; schedules its second run if there is one."""
        cleanup = self._cleanups.pop((owner, holding), None)
        if cleanup is not None and not cleanup.is_last:
            due = asyncio.get_running_loop().time() + self._echo_s
            self._cleanups[owner, holding] = _Cleanup(due, is_last=True)
