"""Comparison: compares what Redis stores for a node's connections with its local holdings, and removes the difference.

They can differ although the node's lease is valid: Redis may have restored an older copy, or evicted keys.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from prometheus_client import Counter

from snorky.gateway.redis.connection.pipeline import all_ended
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.directory.holdings import LocalHoldings
from snorky.gateway.redis.directory.owned_index import (
    OwnedIndex,
    OwnedItem,
    OwnedName,
    RosterEntry,
    field_of,
    read_element,
)
from snorky.gateway.redis.keys import counts_key, names_key, owned_key, roster_key

__all__ = ["Comparison"]

PAGE: Final = 500  # elements of an index


class Comparison:
    """Finds what Redis lacks, and removes what no connection here holds. mended: counts the differences by kind."""

    def __init__(
        self, scripts: Scripts, *, prefix: str, local_holdings: LocalHoldings, owned_index: OwnedIndex, mended: Counter
    ) -> None:
        self._scripts = scripts
        self._prefix = prefix
        self._local_holdings = local_holdings
        self._owned_index = owned_index
        self._mended = mended

    def count(self, kind: str, number: int) -> None:
        """Count differences of one kind."""
        if number:
            self._mended.labels(kind).inc(number)

    async def look(self, owner: str, holdings: Sequence[OwnedItem]) -> tuple[set[OwnedItem], set[OwnedName]]:
        """Find holdings that Redis lacks, and names that other owners have; also repairs the index.

        The caller must have locked the holdings. Raises BrokerUnavailable.
        """
        if not holdings:
            return set(), set()
        rosters: defaultdict[str, list[RosterEntry]] = defaultdict(list)
        names: defaultdict[str, list[OwnedName]] = defaultdict(list)
        for each in holdings:
            if isinstance(each, RosterEntry):
                rosters[each.roster].append(each)
            else:
                names[each.names].append(each)
        calls: list[Call | bytes] = [
            Call(
                "compare",
                [roster_key(self._prefix, roster), counts_key(self._prefix, roster)],
                [field_of(owner, place) for place in places],
            )
            for roster, places in rosters.items()
        ]
        calls += [
            command(b"HMGET", names_key(self._prefix, key), *(each.name.encode() for each in held))
            for key, held in names.items()
        ]
        index = command(b"SADD", owned_key(self._prefix, owner), *(each.element() for each in holdings))
        indexed, *answers = await self._scripts.run(index, *calls)
        self.count("index", indexed)
        missing: set[OwnedItem] = set()
        anothers: set[OwnedName] = set()
        for places, flags in zip(rosters.values(), answers, strict=False):
            self.count("counts", flags[0])
            missing.update(place for place, is_missing in zip(places, flags[1:], strict=True) if is_missing)
        for held, values in zip(names.values(), answers[len(rosters) :], strict=True):
            for each, value in zip(held, values, strict=True):
                if value is None:
                    missing.add(each)
                elif value.partition(b" ")[0] != f"{owner}:{each.serial}".encode():
                    anothers.add(each)
        return missing, anothers

    async def runs(self) -> set[bytes]:
        """Read the run_id of all servers. Raises BrokerUnavailable."""
        answers = await all_ended(server.run(Call("run", [], [])) for server in self._scripts.servers())
        return {bytes(run) for (run,) in answers}

    async def drop_strays(self, owner: str) -> int:
        """Remove what Redis has of an owner and no connection here holds, without notices; returns the number removed.

        Raises BrokerUnavailable.
        """
        key, count, cursor = owned_key(self._prefix, owner), 0, b"0"
        while True:
            ((cursor, elements),) = await self._scripts.run(command(b"SSCAN", key, cursor, b"COUNT", b"%d" % PAGE))
            read = [holding for element in elements if (holding := read_element(element)) is not None]
            strays = [each for each in read if not self._is_known(owner, each)]
            if strays:
                async with self._local_holdings.locked_all(strays) as held:
                    strays = [
                        each
                        for each in strays
                        if each not in held and not self._local_holdings.has_cleanup(owner, each)
                    ]
                    count += sum(await self._owned_index.give_back(owner, strays, is_quiet=True))
                    self._owned_index.forget(owner, strays)
            if cursor == b"0":
                self.count("stray", count)
                return count

    def _is_known(self, owner: str, holding: OwnedItem) -> bool:
        return self._local_holdings.holds(holding) or self._local_holdings.has_cleanup(owner, holding)
