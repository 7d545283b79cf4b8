"""SpreadRevocations: the list of revocations in several independent Redis. Each has the whole list.

Rules:
- Every Redis reports a new entry, at slightly different times; the watcher is called only once.
- An entry is added to every Redis. If one fails, the caller gets an error; where the entry was added, it is valid.
- One Redis that answers is enough for lookups and for the start, because it has all entries that were added everywhere.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from snorky.gateway.contracts.revocations import Kind, Revocation, Revocations, Watcher
from snorky.gateway.errors import BrokerUnavailable

__all__ = ["SpreadRevocations"]

SAME_S: Final = 15.0  # a node reads all lists within this time, also without clients, after one failed read (IDLE_S);
# a later report is a new entry of the same name

_T = TypeVar("_T")


class SpreadRevocations:
    """Implements `contracts.revocations.Revocations`. lists: one for each Redis. clock: monotonic seconds."""

    def __init__(self, lists: Sequence[Revocations], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lists = lists
        self._clock = clock
        self._expected: defaultdict[tuple[int, Kind, str], deque[float]] = defaultdict(deque)  # clock: ignored until

    def read_while(self, has_clients: Callable[[], bool]) -> None:
        """See Revocations."""
        for each in self._lists:
            each.read_while(has_clients)

    def hurry(self) -> None:
        """See Revocations."""
        for each in self._lists:
            each.hurry()

    async def begin(self, watcher: Watcher) -> None:
        """See Revocations; begins with the Redis that answer, the others at a later call."""
        await _any_of(*(each.begin(partial(self._on_told, watcher, at)) for at, each in enumerate(self._lists)))

    async def stop(self) -> None:
        """See Revocations."""
        await asyncio.gather(*(each.stop() for each in self._lists))

    async def add(self, kind: Kind, name: str) -> None:
        """See Revocations."""
        await asyncio.gather(*(each.add(kind, name) for each in self._lists))

    async def find(self, identity: str, token_id: str | None) -> list[Revocation]:
        """See Revocations; of several times for an entry, the latest one counts."""
        found: dict[tuple[Kind, str], Revocation] = {}
        for answer in await _any_of(*(each.find(identity, token_id) for each in self._lists)):
            for entry in answer:
                known = found.get((entry.kind, entry.name))
                if known is None or known.at_s < entry.at_s:
                    found[entry.kind, entry.name] = entry
        return list(found.values())

    async def now_s(self) -> float:
        """See Revocations; the earliest time of several, because each Redis dates its own entries."""
        return min(await _any_of(*(each.now_s() for each in self._lists)))

    def _on_told(self, watcher: Watcher, told_by: int, entry: Revocation) -> None:
        now = self._clock()
        for key, untils in list(self._expected.items()):
            while untils and untils[0] < now:
                untils.popleft()
            if not untils:
                del self._expected[key]
        if expected := self._expected.get((told_by, entry.kind, entry.name)):
            expected.popleft()
            return
        for other in range(len(self._lists)):
            if other != told_by:
                self._expected[other, entry.kind, entry.name].append(now + SAME_S)
        watcher(entry)


async def _any_of(*questions: Coroutine[Any, Any, _T]) -> list[_T]:
    """Ask all, and return the successful answers. Raises BrokerUnavailable: there is none."""
    answers = await asyncio.gather(*questions, return_exceptions=True)
    good: list[_T] = []
    for answer in answers:
        if not isinstance(answer, BaseException):
            good.append(answer)
        elif not isinstance(answer, BrokerUnavailable):
            raise answer
    if not good:
        raise BrokerUnavailable("revocations")
    return good
