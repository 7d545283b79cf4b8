"""Bucket: the units that one node counts in one slot of Redis.

Rules:
- One call is in progress at a time. It carries all names that changed since the last one, each with the number of
  units wanted in total, so a repeated or late call cannot add units twice.
- Calls are numbered, and each names the one before. If Redis does not have the state after that one (data lost, an
  older copy, or expired units), or if the outcome of a call is unknown, the next call writes all units again. If they
  need several calls, the old units count until the new ones are written. A late call is refused by its number.
- A node renews its state also when it counts nothing. So an empty bucket means that Redis has lost its data, or that no
  node could renew in time. Then nodes first write what they held, for SETTLE_S, and those that wait for units wait on.
- Units are held here only after Redis has granted them, and until the caller gives them back.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.keys import limit_demands_key, limit_owners_key, limit_settling_key, limit_units_key

__all__ = ["Bucket"]

SETTLE_S: Final = 3.0  # longer than a living node needs to connect and renew
DEMANDS_TTL_MS: Final = b"3000"  # two reports may fail
BATCH: Final = 500  # names of one call: it takes about 1 ms in Redis
ATTEMPTS: Final = 20  # of a call while other nodes come and go

_log = structlog.get_logger("snorky.redis")


@dataclass(slots=True)
class _Take:
    units: int
    granted: "asyncio.Future[bool]"


@dataclass(slots=True)
class _Count:
    """One name. held: units granted and not given back. ending: held ones that were lost; what they count is ending."""

    held: int = 0
    ending: int = 0
    maximum: int = 0
    takes: deque[_Take] = field(default_factory=deque)

    @property
    def wanted(self) -> int:
        """Units held, and those that callers wait for."""
        return self.held + sum(take.units for take in self.takes)


class Bucket:
    """The units of one node in bucket `number`. on_lost: called with a name and how many units were lost."""

    def __init__(
        self,
        scripts: Scripts,
        *,
        prefix: str,
        number: int,
        node_id: str,
        ttl_s: float,
        settle_s: float,
        on_lost: Callable[[str, int], None],
    ) -> None:
        self._scripts = scripts
        self._node_id = node_id
        self._ttl_ms = b"%d" % round(ttl_s * 1000)
        self._on_lost = on_lost
        self._settle_ms = b"%d" % round(settle_s * 1000)
        self._keys = [limit_owners_key(prefix, number), limit_settling_key(prefix, number)]
        self._key_of: Callable[[str], bytes] = lambda owner: limit_units_key(prefix, number, owner)
        self._demands_of: Callable[[str], bytes] = lambda owner: limit_demands_key(prefix, number, owner)
        self._others: Sequence[str] = ()
        self._counts: dict[str, _Count] = {}
        self._changed: dict[str, None] = {}  # names, in the order of their changes
        self._number = 0  # of the last call
        self._is_registered = False  # Redis has the state after the last call
        self._is_due = False  # for renewal
        self._current_until_s = 0.0  # loop time
        self._settled: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def take(self, name: str, units: int, maximum: int) -> bool:
        """See LimitStore.take."""
        count = self._counts.setdefault(name, _Count())
        count.maximum = maximum
        take = _Take(units, asyncio.get_running_loop().create_future())
        count.takes.append(take)
        self._change(name)
        try:
            return await take.granted
        except asyncio.CancelledError:
            done = take.granted.done() and not take.granted.cancelled() and take.granted.exception() is None
            if done and take.granted.result():
                self.give_back(name, units)
            raise

    def give_back(self, name: str, units: int) -> None:
        """See LimitStore.give_back."""
        count = self._counts.get(name)
        if count is not None:
            count.held = max(0, count.held - units)
            count.ending = max(0, count.ending - units)
            self._change(name)

    def renew(self) -> None:
        """Renew now."""
        self._is_due = True
        self._wake()

    @property
    def is_current(self) -> bool:
        """True while the state of this node cannot have expired in Redis."""
        return asyncio.get_running_loop().time() < self._current_until_s

    @property
    def others(self) -> Sequence[str]:
        """The other living nodes, at the last answer."""
        return self._others

    async def exchange(self, demands: Mapping[str, float]) -> list[float]:
        """Report demands by name; returns those of all other nodes, in the same order. Raises BrokerUnavailable."""
        keys = [self._demands_of(self._node_id), *map(self._demands_of, self._others)]
        words = [word for name, demand in demands.items() for word in (name.encode(), b"%.3f" % demand)]
        (answer,) = await self._scripts.run(Call("demand", keys, [DEMANDS_TTL_MS, *words]))
        return [float(each) for each in answer]

    async def stop(self) -> None:
        """Stop, and free all units if Redis answers. Idempotent."""
        if self._settled is not None:
            self._settled.cancel()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._fail(BrokerUnavailable("limits"))
        if self._number:
            self._counts, self._changed, self._number = {}, {}, self._number + 1
            try:
                await self._call([], b"")
            except BrokerUnavailable as error:
                _log.info("units not freed", error=error.what, expire_in_ms=int(self._ttl_ms))
            self._number = 0

    # -- inner -------------------------------------------------------------------------------------------------

    def _change(self, name: str) -> None:
        self._changed[name] = None
        self._wake()

    def _wake(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="limits")

    async def _run(self) -> None:
        """Send changes until there are none. After an error the next renewal, or the next change, tries again."""
        try:
            while self._is_due or self._changed:
                self._is_due = False
                await self._send()
        except BrokerUnavailable as error:
            self._fail(error)
        except Exception as error:  # the top of a task
            _log.exception("limits not counted", error=repr(error))
            self._fail(BrokerUnavailable("limits"))
        finally:
            self._task = None

    async def _send(self) -> None:
        """Send one batch of changes. Raises BrokerUnavailable."""
        before = b"%d" % self._number
        if not self._is_registered:
            before, self._changed = b"" if len(self._counts) <= BATCH else b"*", dict.fromkeys(self._counts)
        names = list(self._changed)[:BATCH]
        for name in names:
            del self._changed[name]
        self._number += 1
        sent = [(name, len(self._of(name).takes)) for name in names]
        is_registered, self._is_registered = self._is_registered, False  # until the answer
        sent_s = asyncio.get_running_loop().time()
        granted = await self._call(names, before)
        if granted is None:
            if is_registered:
                _log.warning("redis has lost what this node counts against limits", names=len(self._counts))
            self._is_due = True  # write all again
            return
        self._is_registered, self._current_until_s = True, sent_s + int(self._ttl_ms) / 1000
        units, settling_ms, known = granted
        self._changed |= {name: None for name in known if name and name not in self._counts}  # to be removed
        for (name, takes), each in zip(sent, units, strict=True):
            self._settle(name, takes, each, is_settling=settling_ms > 0)
        if settling_ms and self._settled is None:
            self._settled = asyncio.get_running_loop().call_later(settling_ms / 1000, self._on_settled)

    async def _call(self, names: Sequence[str], before: bytes) -> tuple[list[int], int, list[str]] | None:
        """Make one call. Returns the granted units, the ms until new ones are granted (0: they are), and the names that
        Redis has after the first of several calls that write all again.

        None: Redis does not have the former state. Raises as `_send`.
        """
        words: list[bytes] = []
        for name in names:
            count = self._of(name)
            words += [name.encode(), b"%d" % count.held, b"%d" % count.wanted, b"%d" % count.maximum]
        for _ in range(ATTEMPTS):
            others = self._others
            keys = [*self._keys, self._key_of(self._node_id), *map(self._key_of, others)]
            head = [self._node_id.encode(), self._ttl_ms, self._settle_ms, b"%d" % self._number, before]
            ids = [b"%d" % len(others), *(owner.encode() for owner in others)]
            ((status, living, *rest),) = await self._scripts.run(Call("count", keys, [*head, *ids, *words]))
            self._others = sorted(owner.decode() for owner in living)
            if status == b"ok":
                return [int(units) for units in rest[0]], int(rest[1]), [name.decode() for name in rest[2]]
            if status == b"lost":
                return None
            if status == b"late":  # only another process with the same id could have sent it
                raise BrokerUnavailable("limits: another node has this node's id")
        raise BrokerUnavailable("limits: other nodes come and go")

    def _of(self, name: str) -> _Count:
        return self._counts.get(name) or _Count()

    def _on_settled(self) -> None:
        """Ask again for those that wait: new units are granted now."""
        self._settled = None
        self._changed |= {name: None for name, count in self._counts.items() if count.takes}
        self._wake()

    def _settle(self, name: str, takes: int, granted: int, *, is_settling: bool) -> None:
        """Apply Redis' answer for one name. takes: how many of those that wait were in the call."""
        count = self._of(name)
        for _ in range(takes):
            if is_settling and count.maximum and count.held + count.takes[0].units > granted:
                break  # neither granted nor refused
            take = count.takes.popleft()
            is_granted = not take.granted.done() and count.held + take.units <= granted
            if is_granted:
                count.held += take.units
            if not take.granted.done():
                take.granted.set_result(is_granted)
        lost = count.held - granted - count.ending
        if lost > 0:
            count.ending += lost
            self._on_lost(name, lost)
        if count.wanted < granted:  # a cancelled take, or one that was granted in part
            self._changed[name] = None
        elif not count.held and not count.takes:
            self._counts.pop(name, None)

    def _fail(self, error: BrokerUnavailable) -> None:
        """Fail all that wait: it is not known whether Redis has granted anything, and the next call corrects it."""
        self._is_registered = False
        for name, count in list(self._counts.items()):
            takes, count.takes = count.takes, deque()
            for take in takes:
                if not take.granted.done():
                    take.granted.set_exception(error)
            if not count.held:
                del self._counts[name]
