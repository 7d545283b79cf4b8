"""Reconciler: keeps Redis consistent with this node's holdings, in a background task that is woken when there is work.

The steps, in this order; after a failure they start again, with the next renewal of the lease:
1. Sweep fenced incarnations: the reaper may not have finished, and their `left` must precede our `joined`.
2. Register all local members and names again: with `joined` after fencing, because others received `left`; quietly
   after each new connection, because Redis may have restored an older copy. Entries of ours that only such a copy has
   are removed first. A name that another owner has may also come from an older copy; it is *contested* until that owner
   or a reaper had time to release it. Names with a pending notice that they were taken over are left to step 4: if the
   node claimed such a name because it is free, step 4 would conclude that the connection itself has claimed it.
3. Run the pending cleanups (see `holdings`).
4. Check the suspected names: does this node still own them? A name that was taken over is lost, even if it is free now:
   the connection that took it may have released it before this node checks, or Redis may have lost its state since. It
   is never contested, because an older copy sends no notices. If the connection has claimed the name again itself, it
   keeps it. If a name is free and no notice says that it was taken, Redis may have lost it, so everything is registered
   again.
5. Once a minute, compare Redis with the local holdings, because Redis may have evicted keys.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from snorky.gateway.contracts.directory import LocalState, Member, Owner
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.directory.comparison import Comparison
from snorky.gateway.redis.directory.holdings import Holdings, LocalHoldings
from snorky.gateway.redis.directory.lease import Lease
from snorky.gateway.redis.directory.names import Claims
from snorky.gateway.redis.directory.owned_index import BATCH, OwnedIndex, OwnedItem, OwnedName, RosterEntry
from snorky.gateway.redis.directory.rosters import Rosters
from snorky.gateway.redis.keys import claim_key, owned_key

__all__ = ["Reconciler"]

COMPARE_EVERY_S: Final = 60.0
EVICTION_HELP: Final = "is maxmemory-policy noeviction?"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class _Suspicion:
    """A reason to check whether a name is still owned. is_taken: a notice says that it was taken over."""

    is_taken: bool


_log = structlog.get_logger("snorky.redis")


class Reconciler:
    """Keeps Redis and the local holdings of one node in agreement."""

    def __init__(
        self,
        scripts: Scripts,
        *,
        prefix: str,
        lease: Lease,
        local_holdings: LocalHoldings,
        owned_index: OwnedIndex,
        rosters: Rosters,
        claims: Claims,
        comparison: Comparison,
        contest_s: float,
        is_searching: Callable[[], bool] = lambda: False,
        compare_every_s: float = COMPARE_EVERY_S,
    ) -> None:
        self._scripts = scripts
        self._prefix = prefix
        self._lease = lease
        self._local_holdings = local_holdings
        self._owned_index = owned_index
        self._rosters = rosters
        self._claims = claims
        self._comparison = comparison
        self._contest_s = contest_s
        self._is_searching = is_searching
        self._compare_every_s = compare_every_s
        self._compare_at = math.inf  # loop time
        self._contested: set[OwnedName] = set()  # and those that were not registered because of a pending notice
        self._contest_until = -math.inf  # loop time
        self._last_runs: set[bytes] | None = None  # of the servers
        self._local_state: LocalState | None = None
        self._fenced: list[str] = []  # fenced incarnations to sweep
        self._registration: str | None = None  # how to register all again: "joined", "quietly"; None: not needed
        self._is_registering = False  # registering all again is in progress
        self._suspects: dict[OwnedName, _Suspicion] = {}
        self._todo = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """True if no work is left."""
        return not (
            self._fenced or self._registration or self._contested or self._suspects or self._local_holdings.has_cleanups
        )

    @property
    def is_asserting(self) -> bool:
        """True while members and names are not yet registered again after fencing or a possible loss in Redis."""
        return bool(self._fenced or self._registration or self._is_registering)

    def start(self, local_state: LocalState) -> None:
        """Start; returns at once."""
        self._local_state = local_state
        loop = asyncio.get_running_loop()
        self._compare_at = loop.time() + self._compare_every_s
        self._task = loop.create_task(self._run(), name="redis-upkeep")

    async def stop(self) -> None:
        """Stop; remaining work is not done. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def on_fenced(self, former: str) -> None:
        """Handle the fencing of an incarnation; the lease has a new one already."""
        self._fenced.append(former)
        self._registration = "joined"

    def on_lost_state(self) -> None:
        """Redis has lost its state, or may have: register everything again."""
        self._registration = self._registration or "quietly"
        self._todo.set()

    def on_searched(self) -> None:
        """All servers were searched for entries that no index lists (see `reindex`): register everything again."""
        self._contest_until = asyncio.get_running_loop().time() + self._contest_s
        self.on_lost_state()

    def on_renewed(self) -> None:
        """Continue postponed work, after a renewal of the lease."""
        if not self.is_idle or self._last_runs is None:
            self._todo.set()

    def suspect(self, names: Iterable[OwnedName], *, is_taken: bool = False) -> None:
        """Queue these names for a check whether this node still owns them.

        is_taken: Redis has notified this node that another connection took them over. The connection may have claimed
        them again since.
        """
        for name in names:
            known = self._suspects.get(name)
            self._suspects[name] = _Suspicion(is_taken or (known is not None and known.is_taken))
        self._todo.set()

    def schedule_cleanup(self, owner: str, holding: OwnedItem) -> None:
        """Schedule a cleanup of a holding that may have been written, or may still be."""
        self._local_holdings.schedule_cleanup(owner, holding, is_under_way=True)
        self._todo.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._compare_at):
                    await self._todo.wait()
            self._todo.clear()
            is_comparing = asyncio.get_running_loop().time() >= self._compare_at
            if is_comparing:
                self._compare_at = asyncio.get_running_loop().time() + self._compare_every_s
            if not self._lease.is_held:
                continue  # `on_renewed` wakes this task again
            try:
                if self._last_runs is None:
                    await self._look_at_runs()
                await self._sweep_fenced()
                await self._assert_all()
                await self._pay()
                await self._claim_contested()
                await self._verify()
                if is_comparing:
                    await self._compare()
            except BrokerUnavailable as error:
                _log.info("upkeep postponed until redis answers", error=error.what)
            except Exception as error:  # the top of a task
                _log.exception("upkeep failed", error=repr(error))

    async def _sweep_fenced(self) -> None:
        while self._fenced:
            await self._owned_index.sweep(self._fenced[0])
            del self._fenced[0]

    # -- registering again ---------------------------------------------------------------------------------------

    async def _assert_all(self) -> None:
        if self._registration is None or self._local_state is None:
            return
        how, self._registration = self._registration, None
        self._is_registering = True
        try:
            owner = self._lease.owner
            await self._look_at_runs()
            strays = await self._comparison.drop_strays(owner)
            members, names = self._local(self._local_state)
            for page in _pages(members):
                await self._assert_members(owner, page, is_quiet=how == "quietly")
            for names_page in _pages(names):
                await self._assert_names(owner, names_page)
        except BaseException:
            self._registration = "joined" if "joined" in (how, self._registration) else "quietly"
            raise
        finally:
            self._is_registering = False
        if members or names or strays:
            _log.warning("re-registered", how=how, members=len(members), names=len(names), strays=strays)

    async def _look_at_runs(self) -> None:
        """Check whether a server was restarted or replaced since the last check; if so, lost names are contested."""
        runs = await self._comparison.runs()
        if self._last_runs is not None and not runs <= self._last_runs:
            self._contest_until = asyncio.get_running_loop().time() + self._contest_s
        self._last_runs = runs

    async def _compare(self) -> None:
        """Register what is missing in Redis, and remove what the local holdings do not contain."""
        if self._local_state is None:
            return
        owner = self._lease.owner
        strays = await self._comparison.drop_strays(owner)
        all_members, all_names = self._local(self._local_state)
        members = names = 0
        for page in _pages(all_members):
            members += await self._assert_members(owner, page, is_quiet=True, is_missing=True)
        for names_page in _pages(all_names):
            names += await self._assert_names(owner, names_page, is_missing=True)
        self._comparison.count("member", members)
        self._comparison.count("name", names)
        if strays or members or names:
            _log.warning("repaired in redis", members=members, names=names, strays=strays, help=EVICTION_HELP)

    @staticmethod
    def _local(local_state: LocalState) -> tuple[list[tuple[RosterEntry, Member]], list[tuple[OwnedName, str | None]]]:
        return (
            [
                (RosterEntry(roster, member.owner.serial, member.entry), member)
                for roster, member in local_state.local_members()
            ],
            [(OwnedName(names, name, serial), i) for names, name, serial, i in local_state.local_names()],
        )

    async def _assert_members(
        self, owner: str, members: Sequence[tuple[RosterEntry, Member]], *, is_quiet: bool, is_missing: bool = False
    ) -> int:
        """Enter these members. is_missing: only those that Redis lacks. Returns how many were entered."""
        async with self._local_holdings.locked_all([place for place, _ in members]) as held:
            mine = [(place, member) for place, member in members if place in held]  # some left meanwhile
            if is_missing:
                missing, _ = await self._comparison.look(owner, [place for place, _ in mine])
                mine = [(place, member) for place, member in mine if place in missing]
            calls = [
                self._rosters.entering(
                    place.roster,
                    Member(member.identity, Owner.parse(f"{owner}:{place.serial}"), place.entry, member.data),
                    is_again=True,
                    is_quiet=is_quiet,
                )
                for place, member in mine
            ]
            await self._assert(owner, [place for place, _ in mine], calls)
            return len(mine)

    async def _assert_names(
        self, owner: str, names: Sequence[tuple[OwnedName, str | None]], *, is_missing: bool = False
    ) -> int:
        """Claim these names, except those with a pending notice. Returns how many were claimed.

        is_missing: only those without an owner in Redis.
        """
        async with self._local_holdings.locked_all([name for name, _ in names]) as held:
            mine = [(name, identity) for name, identity in names if name in held]
            if is_missing:
                missing, anothers = await self._comparison.look(owner, [name for name, _ in mine])
                self.suspect(anothers)
                mine = [(name, identity) for name, identity in mine if name in missing]
            taken = {name for name, _ in mine if name in self._suspects and self._suspects[name].is_taken}
            self._contested |= taken  # `_verify` removes those that are lost
            mine = [(name, identity) for name, identity in mine if name not in taken]
            calls = [self._claims.claiming(owner, name, identity, is_taking_over=False) for name, identity in mine]
            answers = await self._assert(owner, [name for name, _ in mine], calls)
            for (name, _), is_ours in zip(mine, answers, strict=True):
                if is_ours == 1:
                    self._contested.discard(name)
                    continue
                self._lose_unless_contested(held[name], owner, name)
            return len(mine)

    async def _claim_contested(self) -> None:
        """Try again to claim the contested names."""
        if not self._contested or self._local_state is None:
            return
        names = [each for each in self._local(self._local_state)[1] if each[0] in self._contested]
        self._contested.intersection_update(name for name, _ in names)
        for page in _pages(names):
            await self._assert_names(self._lease.owner, page)

    async def _assert(self, owner: str, holdings: Sequence[OwnedItem], calls: Sequence[Call]) -> Sequence[Any]:
        if not calls:
            return ()
        elements = [holding.element() for holding in holdings]
        _, *answers, is_fenced = await self._scripts.run(
            command(b"SADD", owned_key(self._prefix, owner), *elements),
            *calls,
            command(b"EXISTS", claim_key(self._prefix, owner)),
        )
        if is_fenced:
            raise BrokerUnavailable("fenced meanwhile")  # `on_fenced` will have this incarnation swept
        return answers

    # -- cleanups and suspected names ------------------------------------------------------------------------------

    async def _pay(self) -> None:
        for serial in self._local_holdings.left_over():
            async with self._local_holdings.leaving(serial) as holdings:
                for holding in holdings:
                    self._local_holdings.schedule_cleanup(self._lease.owner, holding, is_under_way=True)
        while due := self._local_holdings.due_cleanups(BATCH):
            async with self._local_holdings.locked_all([holding for _, holding in due]):
                for owner in {owner for owner, _ in due}:
                    # not those that were cancelled meanwhile by entering or claiming again
                    pending = [
                        each for key, each in due if key == owner and self._local_holdings.has_cleanup(owner, each)
                    ]
                    await self._owned_index.give_back(owner, pending)
                    self._owned_index.forget(owner, pending)
                    for each in pending:
                        self._local_holdings.cleanup_ran(owner, each)

    async def _verify(self) -> None:
        for name, suspicion in list(self._suspects.items()):
            async with self._local_holdings.locked_all([name]) as held:
                if name in held and not await self._check(held[name], name, is_taken=suspicion.is_taken):
                    continue
            if self._suspects.get(name) is suspicion:  # otherwise a notice came, perhaps after Redis had answered
                del self._suspects[name]

    async def _check(self, holdings: Holdings, name: OwnedName, *, is_taken: bool) -> bool:
        """Check whether this node still owns a name. Returns False if the check must be repeated after registering."""
        if self._registration is not None and not is_taken:
            return False
        found = await self._claims.find(name.names, name.name)
        is_ours = found is not None and (found.node_id, found.serial) == (self._lease.node_id, name.serial)
        if is_taken and not is_ours:
            if self._registration is not None:  # in another copy, this connection may still have the name
                self.schedule_cleanup(self._lease.owner, name)
            self._lose(holdings, self._lease.owner, name)
        elif self._registration is not None:
            return False  # there is a new connection: this answer may be of an older copy
        elif is_ours:  # the connection has claimed the name again since, or Redis never lost it
            if name in self._contested:
                self._todo.set()  # it was not registered because of the notice
        elif found is None:
            self.on_lost_state()
        else:
            self._lose_unless_contested(holdings, self._lease.owner, name)
        return True

    def _lose_unless_contested(self, holdings: Holdings, owner: str, name: OwnedName) -> None:
        """Handle a name that another owner has: lost, or contested if Redis may just have restored an older copy."""
        if asyncio.get_running_loop().time() < self._contest_until or self._is_searching():
            self._contested.add(name)
        else:
            self._lose(holdings, owner, name)

    def _lose(self, holdings: Holdings, owner: str, name: OwnedName) -> None:
        self._contested.discard(name)
        holdings.all.discard(name)
        self._owned_index.forget(owner, [name])
        try:
            if self._local_state is not None:
                self._local_state.on_lost_name(name.names, name.name, name.serial)
        except Exception as error:  # raised by a service
            _log.exception("lost name not processed", error=repr(error))


def _pages(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
