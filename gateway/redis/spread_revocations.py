"""SpreadRevocations: the list of revocations in several independent Redis. All have all of it.

Rules:
- What one tells, the others tell a moment later: it is passed on once.
- An entry is added everywhere, or the caller is told that it was not; where it was it counts.
- Any one that answers is enough to look up, and to begin: what was added everywhere is there too.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from gateway.errors import BrokerUnavailable
from gateway.revocation import Kind, Revocation, Revocations, Watcher

__all__ = ["SpreadRevocations"]

SAME_S: Final = 5.0  # all nodes read all lists within: a later one is another entry of the same name

_T = TypeVar("_T")


class SpreadRevocations:
    """Fulfils `gateway.revocation.Revocations`. lists: one for each Redis. clock: seconds, monotonic."""

    def __init__(self, lists: Sequence[Revocations], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lists = lists
        self._clock = clock
        self._expected: defaultdict[tuple[int, Kind, str], deque[float]] = defaultdict(deque)  # until when

    async def begin(self, watcher: Watcher) -> None:
        """See Revocations; one that is away is begun with later."""
        await _any_of(*(each.begin(partial(self._on_told, watcher, at)) for at, each in enumerate(self._lists)))

    async def stop(self) -> None:
        """See Revocations."""
        await asyncio.gather(*(each.stop() for each in self._lists))

    async def add(self, kind: Kind, name: str) -> None:
        """See Revocations."""
        await asyncio.gather(*(each.add(kind, name) for each in self._lists))

    async def find(self, identity: str, token_id: str | None) -> list[Revocation]:
        """See Revocations; an entry counts from the latest time that any Redis knows."""
        found: dict[tuple[Kind, str], Revocation] = {}
        for answer in await _any_of(*(each.find(identity, token_id) for each in self._lists)):
            for entry in answer:
                known = found.get((entry.kind, entry.name))
                if known is None or known.at_s < entry.at_s:
                    found[entry.kind, entry.name] = entry
        return list(found.values())

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
    """Ask all; give the answers there are. Raises BrokerUnavailable: there is none."""
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
