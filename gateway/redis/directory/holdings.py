"""LocalHoldings: the holdings (roster entries and names) of each connection of this node, and the pending cleanups.

Rules:
- The holdings of a connection are locked by one caller at a time. So operations for one connection do not overlap, and
  a delayed write cannot restore what was released meanwhile.
- A *debt* is a pending cleanup: of a write that may have succeeded although we reported a failure, or of a release that
  has not succeeded. If a write may still be in transit, the cleanup runs twice: soon, and again later.
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
class _Debt:
    due: float  # loop time
    is_last: bool


class LocalHoldings:
    """The holdings and pending cleanups of one node. echo_s: time until the second run of a cleanup."""

    def __init__(self, *, echo_s: float) -> None:
        self._echo_s = echo_s
        self._holdings: dict[int, Holdings] = {}  # by serial
        self._debts: dict[tuple[str, OwnedItem], _Debt] = {}  # by NODE:INCARNATION and holding
        self._leaving: set[int] = set()

    @property
    def is_empty(self) -> bool:
        """True if there are no holdings and no pending cleanups."""
        return not self._holdings and not self._debts

    @property
    def has_debts(self) -> bool:
        """True if a cleanup is pending, or the release of a closed connection is not finished."""
        return bool(self._debts or self._leaving)

    def names(self) -> list[OwnedName]:
        """List all names that connections own."""
        every = (holding for holdings in self._holdings.values() for holding in holdings.all)
        return [holding for holding in every if isinstance(holding, OwnedName)]

    def holds(self, holding: OwnedItem) -> bool:
        """True if its connection has this holding."""
        holdings = self._holdings.get(holding.serial)
        return holdings is not None and holding in holdings.all

    @asynccontextmanager
    async def held(self, serial: int) -> AsyncIterator[Holdings]:
        """Lock the holdings of a connection. Raises ConnectionClosed: the connection is closed."""
        async with self._lend(serial) as holdings:
            if holdings.is_gone:
                raise ConnectionClosed
            yield holdings

    @asynccontextmanager
    async def held_all(self, wanted: Collection[OwnedItem]) -> AsyncIterator[dict[OwnedItem, Holdings]]:
        """Lock the connections of these holdings; yields those that still exist, with their connection's Holdings."""
        async with AsyncExitStack() as stack:
            # Only one caller at a time locks several connections, so there is no deadlock.
            serials = dict.fromkeys(holding.serial for holding in wanted)
            lent = {serial: await stack.enter_async_context(self._lend(serial)) for serial in serials}
            yield {each: lent[each.serial] for each in wanted if each in lent[each.serial].all}

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
        async with self._lend(serial):
            mine = list(holdings.all)
            yield mine
            holdings.all.clear()
        self._leaving.discard(serial)

    def left_over(self) -> list[int]:
        """List closed connections whose release is not finished."""
        return list(self._leaving)

    @asynccontextmanager
    async def _lend(self, serial: int) -> AsyncIterator[Holdings]:
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

    def owe(self, owner: str, holding: OwnedItem, *, is_under_way: bool) -> None:
        """Schedule a cleanup. is_under_way: its write may still be in transit, so it runs twice."""
        self._debts[owner, holding] = _Debt(asyncio.get_running_loop().time(), is_last=not is_under_way)

    def excuse(self, owner: str, holding: OwnedItem) -> None:
        """Cancel a cleanup: the connection has the holding again."""
        self._debts.pop((owner, holding), None)

    def is_owed(self, owner: str, holding: OwnedItem) -> bool:
        """True while a cleanup of this holding is pending."""
        return (owner, holding) in self._debts

    def due(self, max_count: int) -> list[tuple[str, OwnedItem]]:
        """List the cleanups that are due, as (NODE:INCARNATION, holding)."""
        now = asyncio.get_running_loop().time()
        found = []
        for key, debt in self._debts.items():
            if debt.due <= now:
                found.append(key)
                if len(found) == max_count:
                    break
        return found

    def paid(self, owner: str, holding: OwnedItem) -> None:
        """Record that a cleanup has run; schedules its second run if there is one."""
        debt = self._debts.pop((owner, holding), None)
        if debt is not None and not debt.is_last:
            due = asyncio.get_running_loop().time() + self._echo_s
            self._debts[owner, holding] = _Debt(due, is_last=True)
