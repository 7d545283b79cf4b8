"""Reaper: releases what dead nodes owned. Every node runs one, so the nodes watch each other.

Rules:
- Each renewal of the node's own lease also lists the leases that have expired, or will before the next renewal. So a
  node sends no other command while no lease expires. It looks again at the moment when one expires, and then every
  second.
- A node is considered dead if its lease was expired in every check for at least 3 s, and this node renewed its own
  lease in between. After a pause of Redis all leases have expired; living nodes renew theirs within that time.
- A node that cannot renew its own lease ignores the leases of others: if Redis answers but rejects writes (MISCONF,
  NOREPLICAS), all leases expire. When writes work again, every living node renews its lease before it counts as dead.
- One reaper claims the dead node (SET NX, in the same script as a last check of its lease). From then on it is fenced.
- If a reaper does not finish, another one continues: a dead owner stays on a list until its claim expires, and is swept
  repeatedly, because late writes may still arrive.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import structlog

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.directory.lease import Lease, Timings
from snorky.gateway.redis.keys import claim_key, leases_key, owned_key, reaped_key

__all__ = ["Reaper"]

AHEAD: Final = 2.0  # of the time between two renewals: the next one may be late
LOOK_MAX: Final = 100  # owners per check; more are found by the next check

_log = structlog.get_logger("snorky.redis")


@dataclass(frozen=True, slots=True)
class _Sighting:
    at: float  # loop time
    renewals: int  # number of our own renewals until then


class Reaper:
    """Finds and sweeps dead owners. sweep: releases all holdings of a NODE:INCARNATION; returns their number."""

    def __init__(
        self, scripts: Scripts, *, prefix: str, lease: Lease, timings: Timings, sweep: Callable[[str], Awaitable[int]]
    ) -> None:
        self._scripts = scripts
        self._prefix = prefix
        self._lease = lease
        self._timings = timings
        self._sweep = sweep
        self._sightings: dict[str, _Sighting] = {}
        self._looked_at = 0.0
        self._next_end = math.inf  # loop time at which the next lease expires or the next sweep is due
        self._ridden: tuple[Any, _Sighting] | None = None  # what came with a renewal, and when; until it is judged
        self._has_ridden = asyncio.Event()
        self._is_failing = False  # the script failed in the last renewal
        self._task: asyncio.Task[None] | None = None
        self._sweeps: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start to check leases; returns at once."""
        self._lease.riders.append(self)
        self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-reaper")

    async def stop(self) -> None:
        """Stop; reapers of other nodes finish the sweeps that are running here. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            self._lease.riders.remove(self)
        tasks = [*self._sweeps, *([] if task is None else [task])]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def ride(self) -> Call:
        """See Rider."""
        keys = [leases_key(self._prefix), reaped_key(self._prefix)]
        ahead_ms = b"%d" % round(AHEAD * self._timings.renew_s * 1000)
        return Call("look", keys, [b"%d" % LOOK_MAX, ahead_ms])

    def on_ridden(self, call: Call, answer: Any) -> None:
        """See Rider."""
        if isinstance(answer, hiredis.ReplyError):
            if not self._is_failing:
                _log.error("check for dead nodes failed", error=str(answer)[:300])
            self._is_failing = True
            return
        self._is_failing = False
        self._ridden = answer, self._now()
        self._has_ridden.set()

    async def _run(self) -> None:
        while True:
            try:
                try:
                    async with asyncio.timeout(self._pause_s()):
                        await self._has_ridden.wait()
                except TimeoutError:
                    pass
                await self._look()
            except BrokerUnavailable:
                self._sightings.clear()  # not logged: the next renewal, or the script in it, fails too and is logged
                self._look_again()
            except Exception as error:  # the top of a task
                _log.exception("check for dead nodes failed", error=repr(error))
                self._look_again()

    def _look_again(self) -> None:
        """Look soon after an error, without waiting for a renewal."""
        self._next_end = asyncio.get_running_loop().time() + self._timings.look_s

    def _pause_s(self) -> float | None:
        """Compute the pause until a check that no renewal brings; None = there is none: this node cannot renew."""
        now = asyncio.get_running_loop().time()
        due = [sighting.at + self._timings.sighting_s for sighting in self._sightings.values()]
        due += [self._next_end, self._looked_at + AHEAD * self._timings.renew_s]
        if self._sightings:
            due.append(now + self._timings.look_s)
        next_at = min((at for at in due if at > now), default=math.inf)
        return None if next_at == math.inf else next_at - now

    def _now(self) -> _Sighting:
        return _Sighting(asyncio.get_running_loop().time(), self._lease.renewals)

    async def _look(self) -> None:
        ridden, self._ridden = self._ridden, None
        self._has_ridden.clear()
        if self._lease.is_failing or not self._lease.is_held:
            self._sightings.clear()
            self._next_end = math.inf
            return
        if ridden is None:
            (answer,) = await self._scripts.run(self.ride())
            ridden = answer, self._now()
        (leases, sweeps), present = ridden
        now = present.at
        if now - self._looked_at > self._timings.sighting_s:
            self._sightings.clear()  # this node was suspended, so earlier sightings prove nothing
        self._looked_at = now
        before, self._sightings = self._sightings, {}
        dead = []
        self._next_end = math.inf
        for owner, ended_ms in zip((text.decode() for text in leases[::2]), leases[1::2], strict=True):
            if ended_ms < 0:
                self._next_end = min(self._next_end, now - ended_ms / 1000)
                continue
            sighting = before.get(owner) or present
            self._sightings[owner] = sighting
            if now - sighting.at >= self._timings.sighting_s and present.renewals > sighting.renewals:
                dead.append(owner)
        for owner, late_ms in zip((text.decode() for text in sweeps[::2]), sweeps[1::2], strict=True):
            if late_ms < 0:
                self._next_end = min(self._next_end, now - late_ms / 1000)
            else:
                dead.append(owner)
        for owner in dead:
            if owner != self._lease.owner and self._lease.is_held and await self._seize(owner):
                self._sightings.pop(owner, None)
                task = asyncio.get_running_loop().create_task(self._reap(owner), name=f"redis-reap-{owner}")
                self._sweeps.add(task)
                task.add_done_callback(self._sweeps.discard)

    async def _seize(self, owner: str) -> bool:
        timings, prefix = self._timings, self._prefix
        keys = [leases_key(prefix), reaped_key(prefix), claim_key(prefix, owner)]
        times = (b"%d" % round(seconds * 1000) for seconds in (timings.claim_ttl_s, timings.hold_s))
        (is_ours,) = await self._scripts.run(Call("seize", keys, [owner.encode(), self._lease.owner.encode(), *times]))
        return bool(is_ours == 1)

    async def _reap(self, owner: str) -> None:
        try:
            count = await self._sweep(owner)
            keys = [reaped_key(self._prefix), claim_key(self._prefix, owner)]
            pause_ms = b"%d" % round(self._timings.sweep_s * 1000)
            (is_kept,) = await self._scripts.run(Call("swept", keys, [owner.encode(), pause_ms]))
            if is_kept == 0:  # the elements that are left in its index have no state
                await self._scripts.run(command(b"DEL", owned_key(self._prefix, owner)))
        except BrokerUnavailable as error:
            _log.warning("reaping failed; it will be tried again", owner=owner, error=error.what)
        except Exception as error:  # the top of a task
            _log.exception("reaping failed; it will be tried again", owner=owner, error=repr(error))
        else:
            if count:
                _log.warning("cleaned up dead node", owner=owner, given_back=count)
