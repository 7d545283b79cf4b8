"""ReconnectingConnection: connects to Redis, and again whenever the connection is lost.

Attempts are repeated with exponential backoff and full jitter, so that not all nodes reconnect at the same moment after
a restart of Redis. The delay is at most one second: the documented recovery time is three seconds.

If the server is found by Sentinel or Cluster, it is looked up for each attempt, and every WATCH_S while connected: a
former primary that only this node can reach still answers all commands.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

import structlog

from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.refusals import Refusal, refusal_of
from snorky.gateway.redis.connection.resp import ConnectionLost, DialError, RespConnection, dial

__all__ = ["ReconnectingConnection"]

BACKOFF_BASE_S = 0.05
BACKOFF_MAX_S = 1.0
WATCH_S = 2.0  # the documented limit for noticing is 4 s, so one lost answer is tolerated

_log = structlog.get_logger("snorky.redis")


class ReconnectingConnection:
    """Keeps one wire open, by a task that runs from `start` to `stop`.

    role: for metrics and logs. on_up: called with each new authenticated wire; must set its `consume`.
    on_down: called once for each wire passed to `on_up`, when it is closed or lost.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        role: str,
        name: str,
        on_up: Callable[[RespConnection], None],
        on_down: Callable[[ConnectionLost], None],
        metrics: Metrics,
        dial_timeout_s: float,
    ) -> None:
        self.wire: RespConnection | None = None  # set while connected
        self._target = target
        self._role = role
        self._name = name
        self._on_up = on_up
        self._on_down = on_down
        self._reconnects = metrics.redis_reconnects.labels(role)
        self._dial_timeout_s = dial_timeout_s
        self._attempts = 0  # since the last `settle`
        self._was_up = False
        self._task: asyncio.Task[None] | None = None
        self._log = _log.bind(role=role, redis=target.safe_url)

    def start(self) -> None:
        """Start to connect; returns at once. Call once."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"redis-{self._role}")

    async def stop(self) -> None:
        """Close the wire and end the task. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def redial(self, reason: str) -> None:
        """Close the present wire and connect again; does nothing if there is none (it is connecting already)."""
        if self.wire is not None:
            self.wire.close(ConnectionLost(reason))

    def on_refused(self, error: object) -> None:
        """Handle an error reply of Redis: if the primary became a replica and can be looked up, connect again."""
        if self._target.is_moving and refusal_of(error) is Refusal.READ_ONLY:
            # not immediately: the caller is still reading replies of this wire
            asyncio.get_running_loop().call_soon(self.redial, "it became a replica")

    def settle(self) -> None:
        """Reset the backoff: the wire works, so the next reconnect may start soon."""
        self._attempts = 0

    async def _run(self) -> None:
        while True:
            try:
                wire = await dial(self._target, name=self._name, timeout_s=self._dial_timeout_s)
            except DialError as error:
                if self._attempts & (self._attempts + 1) == 0:  # log only the 1st, 2nd, 4th, 8th ... attempt
                    self._log.warning("redis not reached", error=str(error), attempt=self._attempts + 1)
            else:
                if self._was_up:
                    self._reconnects.inc()
                self._was_up = True
                self._log.info("redis connected", server=wire.server.address if wire.server else None)
                try:
                    self._hand_over(wire)
                    await self._until_lost(wire)
                except Exception as error:
                    # A bug in the owner's callbacks. The state of this wire is unknown, so connect again.
                    self._log.exception("connection state lost", error=repr(error))
                finally:
                    wire.close(ConnectionLost("stopped"))
                    await wire.wait_closed()
            self._attempts += 1
            ceiling_s = min(BACKOFF_MAX_S, BACKOFF_BASE_S * 2 ** min(self._attempts, 10))
            await asyncio.sleep(random.uniform(0, ceiling_s))  # noqa: S311 - spreads load, guards nothing

    async def _until_lost(self, wire: RespConnection) -> None:
        if not self._target.is_moving:
            await wire.wait_closed()
            return
        while wire.is_open:
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await wire.wait_closed()
            with suppress(DialError):  # the primary cannot be looked up: stay connected
                if await self._target.resolved(max_age_s=WATCH_S / 2) != wire.server:
                    wire.close(ConnectionLost("another server is the primary now"))

    def _hand_over(self, wire: RespConnection) -> None:
        def on_lost(error: ConnectionLost) -> None:
            self.wire = None
            if self._task is not None:  # otherwise we are stopping
                self._log.warning("redis connection lost", error=str(error))
            self._on_down(error)

        wire.on_lost = on_lost
        self.wire = wire
        self._on_up(wire)
