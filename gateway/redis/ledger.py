"""Ledger: what each connection of this node holds, and what is owed.

Rules:
- Holdings are lent to one caller at a time: what is done for one connection is done one after the other, so that
  nothing that is given back comes again by a call that was overtaken.
- A *debt* is what may have been done although its caller was told that it failed, or what could not be given back. It
  is paid twice if a write may have been on the way: once soon, once later.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from gateway.errors import ConnectionClosed
from gateway.redis.estate import Holding, NameHeld

__all__ = ["Holdings", "Ledger"]


class Holdings:
    """What one connection holds. is_gone: it holds nothing any more, and gets nothing."""

    __slots__ = ("all", "is_gone", "lock", "users")

    def __init__(self) -> None:
        self.all: set[Holding] = set()
        self.lock = asyncio.Lock()
        self.users = 0
        self.is_gone = False


@dataclass(frozen=True, slots=True)
class _Debt:
    due: float  # loop time
    is_last: bool


class Ledger:
    """Keeps the books of one node. echo_s: when a debt is paid for the second time."""

    def __init__(self, *, echo_s: float) -> None:
        self._echo_s = echo_s
        self._holdings: dict[int, Holdings] = {}  # by serial
        self._debts: dict[tuple[str, Holding], _Debt] = {}  # by NODE:INCARNATION and holding
        self._leaving: set[int] = set()

    @property
    def is_empty(self) -> bool:
        """True if nothing is held nor owed."""
        return not self._holdings and not self._debts

    @property
    def has_debts(self) -> bool:
        """True if something is owed, or a connection's leaving is not finished."""
        return bool(self._debts or self._leaving)

    def names(self) -> list[NameHeld]:
        """List all names that are held."""
        every = (holding for holdings in self._holdings.values() for holding in holdings.all)
        return [holding for holding in every if isinstance(holding, NameHeld)]

    def holds(self, holding: Holding) -> bool:
        """True if its connection has it."""
        holdings = self._holdings.get(holding.serial)
        return holdings is not None and holding in holdings.all

    @asynccontextmanager
    async def held(self, serial: int) -> AsyncIterator[Holdings]:
        """Lend what a connection holds. Raises ConnectionClosed: it has gone meanwhile."""
        async with self._lend(serial) as holdings:
            if holdings.is_gone:
                raise ConnectionClosed
            yield holdings

    @asynccontextmanager
    async def held_all(self, wanted: Collection[Holding]) -> AsyncIterator[dict[Holding, Holdings]]:
        """Have nobody else touch these holdings; gives those that connections have."""
        async with AsyncExitStack() as stack:
            # One caller at a time has more than one, so two never wait for each other.
            serials = dict.fromkeys(holding.serial for holding in wanted)
            lent = {serial: await stack.enter_async_context(self._lend(serial)) for serial in serials}
            yield {each: lent[each.serial] for each in wanted if each in lent[each.serial].all}

    @asynccontextmanager
    async def leaving(self, serial: int) -> AsyncIterator[list[Holding]]:
        """Take all away from a connection that has gone. If this is cancelled, `left_over` names it."""
        holdings = self._holdings.get(serial)
        if holdings is None:
            self._leaving.discard(serial)
            yield []
            return
        self._leaving.add(serial)
        holdings.is_gone = True  # from here on nothing is given to who waits
        async with self._lend(serial):
            mine = list(holdings.all)
            yield mine
            holdings.all.clear()
        self._leaving.discard(serial)

    def left_over(self) -> list[int]:
        """List connections whose leaving is not finished."""
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

    # -- debts -------------------------------------------------------------------------------------------------

    def owe(self, owner: str, holding: Holding, *, is_under_way: bool) -> None:
        """Note a debt. is_under_way: its write may still come."""
        self._debts[owner, holding] = _Debt(asyncio.get_running_loop().time(), is_last=not is_under_way)

    def excuse(self, owner: str, holding: Holding) -> None:
        """Cancel a debt: it is held again."""
        self._debts.pop((owner, holding), None)

    def is_owed(self, owner: str, holding: Holding) -> bool:
        """True until it is paid or cancelled."""
        return (owner, holding) in self._debts

    def due(self, max_count: int) -> list[tuple[str, Holding]]:
        """List debts that are to be paid now, (NODE:INCARNATION, holding)."""
        now = asyncio.get_running_loop().time()
        found = []
        for key, debt in self._debts.items():
            if debt.due <= now:
                found.append(key)
                if len(found) == max_count:
                    break
        return found

    def paid(self, owner: str, holding: Holding) -> None:
        """Know that a debt was paid; it may be due once more."""
        debt = self._debts.pop((owner, holding), None)
        if debt is not None and not debt.is_last:
            due = asyncio.get_running_loop().time() + self._echo_s
            self._debts[owner, holding] = _Debt(due, is_last=True)
