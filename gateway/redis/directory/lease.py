"""Lease: one lease per node keeps alive everything that its connections own in Redis.

An *incarnation* is a random id that a node chooses at its start and each time it is fenced. *Fencing* by a reaper ends
an incarnation for good: its late writes are undone. Rules:
- The node renews its lease every 2 s; it expires 8 s after the last renewal, by the clock of Redis. An expired lease is
  renewed under the same incarnation: if Redis was unavailable, the leases of all nodes have expired.
- Each renewal carries the node's state for `snorky stats` (`node_states`), and the scripts of riders, which Redis runs
  in the same command. If the node was fenced, their answers are ignored.
- If the clock of Redis is set back, no lease lasts longer: each renewal shortens leases that expire later than itself.
- A node is fenced only by a reaper's claim. It then takes a new incarnation at once.
- If Redis does not know a lease that was renewed before, it has lost its state.
- `is_held` is computed from the time when a renewal was sent, by this node's clock, so it never lasts longer than the
  lease in Redis.
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import hiredis
import structlog

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.scripts import Call, Joined, Scripts
from snorky.gateway.redis.directory.node_states import NodeReport
from snorky.gateway.redis.keys import claim_key, leases_key, node_key, nodes_key, reaped_key

__all__ = ["Lease", "Rider", "Timings"]

_log = structlog.get_logger("snorky.redis")


@dataclass(frozen=True, slots=True)
class Timings:
    """Timings of leases and reapers. The documented guarantee with the defaults: dead nodes are cleaned up in 15 s."""

    ttl_s: float = 8.0  # three renewals may fail
    renew_s: float = 2.0
    look_s: float = 1.0
    sighting_s: float = 3.0  # between two observations of an expired lease: longer than a living node needs to renew
    claim_ttl_s: float = 3600.0  # late writes may arrive as long as TCP retransmits: 15 min
    hold_s: float = 5.0  # a reaper works alone for this time; then another one may start too
    sweep_s: float = 60.0  # between two sweeps of a dead node


class Rider(Protocol):
    """A script that a node runs as often as it renews its lease. Its keys are in the slot of the nodes."""

    def ride(self) -> Call | None:
        """Return the script for the next renewal; None = none."""

    def on_ridden(self, call: Call, answer: Any) -> None:
        """Handle the answer to a script, `hiredis.ReplyError` if it failed; must not block."""


class Lease:
    """Renews one node's lease. tag: prefix of its incarnations.

    Optional callbacks, which must not block: on_fenced, with the former NODE:INCARNATION; on_lost_state: Redis has lost
    its state; on_renewed.
    """

    def __init__(self, scripts: Scripts, *, prefix: str, node_id: str, timings: Timings, tag: str = "") -> None:
        self.node_id = node_id
        self.on_fenced: Callable[[str], None] = _ignore
        self.on_lost_state: Callable[[], None] = _ignore
        self.on_renewed: Callable[[], None] = _ignore
        self._scripts = scripts
        self._prefix = prefix
        self._timings = timings
        self._tag = tag
        self._renewed_at: float | None = None  # loop time, under the present incarnation
        self._wake = asyncio.Event()
        self._first = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.report = NodeReport(
            scripts, prefix=prefix, node_id=node_id, renew_now=self.renew_now, timeout_s=timings.renew_s
        )
        self.incarnation = self._new_incarnation()
        self.riders: list[Rider] = []
        self.renewals = 0
        self.is_failing = False  # the last renewal failed; perhaps no node can renew

    @property
    def owner(self) -> str:
        """The current NODE:INCARNATION."""
        return f"{self.node_id}:{self.incarnation}"

    @property
    def is_held(self) -> bool:
        """True while the lease cannot have expired in Redis."""
        now = asyncio.get_running_loop().time()
        return self._renewed_at is not None and now - self._renewed_at < self._timings.ttl_s

    def start(self) -> None:
        """Start to renew; returns at once."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-lease")

    async def stop(self, *, is_clean: bool) -> None:
        """Stop renewing, and give the lease up if Redis answers. Idempotent.

        is_clean: nothing is owned under the lease any more; otherwise a reaper releases what is owned.
        """
        await self.abandon()
        if self._renewed_at is not None:
            self._renewed_at = None
            keys = [leases_key(self._prefix), *self._state_keys]
            arguments = [self.owner.encode(), b"1" if is_clean else b"0", self.node_id.encode()]
            try:
                await self._scripts.run(Call("resign", keys, arguments))
            except BrokerUnavailable as error:
                _log.info("lease not given up", error=error.what, expires_in_s=self._timings.ttl_s)

    async def abandon(self) -> None:
        """Stop renewing, without giving the lease up in Redis. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until_first(self) -> None:
        """Wait for the first renewal after the start."""
        await self._first.wait()

    def renew_now(self) -> None:
        """Renew now: Redis is reachable again, and other nodes may be about to consider this node dead."""
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            began = loop.time()
            try:
                problem = await self._renew()
            except BrokerUnavailable as error:
                if not self.is_failing:
                    _log.warning("lease not renewed", error=error.what)
                self.is_failing = True
            except Exception as error:  # the top of a task: if it ended, the node would be reaped
                _log.exception("lease not renewed", error=repr(error))
                self.is_failing = True
            else:
                self.is_failing = False
                await self.report.on_renewed(problem)
            try:
                async with asyncio.timeout(max(0.0, began + self._timings.renew_s - loop.time())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    @property
    def _state_keys(self) -> list[bytes]:
        return [nodes_key(self._prefix).encode(), node_key(self._prefix, self.node_id).encode()]

    async def _renew(self) -> str:
        """Renew once. Returns why the node's state was not stored; "" = it was. Raises BrokerUnavailable."""
        sent_at = asyncio.get_running_loop().time()
        keys = [leases_key(self._prefix), claim_key(self._prefix, self.owner), reaped_key(self._prefix)]
        keys += self._state_keys
        longest_s = max(self._timings.sweep_s, self._timings.hold_s)
        times = [b"%d" % round(seconds * 1000) for seconds in (self._timings.ttl_s, longest_s)]
        arguments = [self.owner.encode(), *times, self.node_id.encode(), self.report.encode()]
        rides = self._rides()
        joined = Joined([Call("renew", keys, arguments), *(call for _, call in rides)])
        ((renewed, *answers),) = await self._scripts.run(joined)
        if isinstance(renewed, hiredis.ReplyError):
            raise BrokerUnavailable(str(renewed)[:300])
        status, problem = renewed
        # A claim expires: a node that was disconnected for longer cannot know whether it was fenced.
        last = self._renewed_at
        is_forgotten = status == b"new" and last is not None and sent_at - last > self._timings.claim_ttl_s / 2
        if status == b"fenced" or is_forgotten:
            former, self._renewed_at = self.owner, None
            self.incarnation = self._new_incarnation()
            self._wake.set()
            _log.warning("fenced: other nodes considered this node dead", owner=former, now=self.owner)
            self.on_fenced(former)
            return ""
        self._renewed_at = sent_at
        self.renewals += 1
        self.is_failing = False
        self._first.set()
        if status == b"new" and last is not None:
            _log.warning("redis has lost its state", owner=self.owner)
            self.on_lost_state()
        self.on_renewed()
        for (rider, call), answer in zip(rides, answers, strict=True):
            try:
                rider.on_ridden(call, answer)
            except Exception as error:  # the lease is renewed
                _log.exception("answer to a script not processed", script=call.name, error=repr(error))
        return str(problem.decode(errors="replace")[:300])

    def _rides(self) -> list[tuple[Rider, Call]]:
        """Ask the riders for their scripts."""
        rides = []
        for rider in self.riders:
            try:
                call = rider.ride()
            except Exception as error:  # the lease must be renewed
                _log.exception("renewal without a script that could not be made", error=repr(error))
                continue
            if call is not None:
                rides.append((rider, call))
        return rides

    def _new_incarnation(self) -> str:
        return self._tag + secrets.token_hex(6)


def _ignore(*_: object) -> None:
    pass
