"""MemoryWatch: has Redis room for writes? Every server that a node writes to is asked every INTERVAL_S.

Rules:
- A server is full when it refuses a write for want of memory (OOM), or when its memory is used up to FULL and it evicts
  nothing. It has room again below ROOM: readiness does not flap.
- How much is used, INFO tells. A user that may not run it is not asked again; then the refused write alone counts, and
  in a Cluster nothing does: the key of a probe lies on one of its servers only.
- A server that does not answer is not full: that it is away, others notice.
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import structlog
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

from gateway.metrics import Metrics
from gateway.redis.names import node_key
from gateway.redis.target import RedisTarget
from gateway.redis.wire import DialError

__all__ = ["MemoryWatch"]

INTERVAL_S: Final = 2.0
PROBE_MS: Final = 4_000  # how long a probe is kept
FULL: Final = 0.98  # of maxmemory; a burst of writes takes the rest before the next look
ROOM: Final = 0.95

_log = structlog.get_logger("snorky.redis")


class _Server:
    """What is known of one server."""

    def __init__(self, target: RedisTarget, *, has_probe: bool) -> None:
        self.client: Redis = target.client(timeout_s=INTERVAL_S, max_connections=1)
        self.url = target.safe_url
        self.is_full = False
        self.used = 0.0  # of maxmemory; 0: not known, or there is none
        self._has_probe = has_probe
        self._may_ask = True

    async def look(self, key: str) -> None:
        """Ask it. Raises RedisError, OSError: it does not answer."""
        is_refused, evicts = False, False
        if self._has_probe:
            try:
                await self.client.set(key, b"", px=PROBE_MS)
            except RedisError as error:
                if isinstance(error, OSError) or not _is_oom(error):
                    raise
                is_refused = True
        if self._may_ask:
            try:
                info = await self.client.info("memory")
                used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
                self.used = used / most if most else 0.0
                evicts = info.get("maxmemory_policy") != "noeviction"
            except NoPermissionError:
                self._may_ask, self.used = False, 0.0
        bound = ROOM if self.is_full else FULL
        self._tell(is_refused or (self.used >= bound and not evicts))

    def _tell(self, is_full: bool) -> None:
        if is_full == self.is_full:
            return
        self.is_full = is_full
        if is_full:
            _log.error(
                "redis is full",
                server=self.url,
                used=f"{self.used:.0%}" if self.used else "unknown",
                remedy="raise maxmemory, or find out what fills it (redis-cli --bigkeys, snorky_limited_total)",
            )
        else:
            _log.info("redis has room again", server=self.url)


class MemoryWatch:
    """Watches while entered. targets: each Redis; of a Cluster each of its primaries is watched."""

    def __init__(self, targets: Sequence[RedisTarget], *, prefix: str, node_id: str, metrics: Metrics) -> None:
        self._targets = targets
        self._key = f"{node_key(prefix, node_id)}:probe"
        self._metrics = metrics
        self._servers: dict[object, _Server] = {}
        self._task: asyncio.Task[None] | None = None
        metrics.redis_full.set_function(lambda: float(self.is_full))
        metrics.redis_memory_used.set_function(
            lambda: max((server.used for server in self._servers.values()), default=0.0)
        )

    @property
    def is_full(self) -> bool:
        """True while one of the servers takes no writes for want of memory."""
        return any(server.is_full for server in self._servers.values())

    async def __aenter__(self) -> Self:
        """Begin; returns at once, whether Redis is there or not."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="memory watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for server in self._servers.values():
            await server.client.aclose()

    async def _run(self) -> None:
        while self._task is not None:  # redis-py may swallow a cancellation that meets its answer
            try:
                await self._find()
                await asyncio.gather(*(self._look(server) for server in self._servers.values()))
            except Exception:  # the top of a task
                _log.exception("memory of redis not looked at")
            await asyncio.sleep(INTERVAL_S)

    async def _look(self, server: _Server) -> None:
        try:
            await server.look(self._key)
        except (RedisError, OSError, DialError):
            pass  # the canary tells when it is away

    async def _find(self) -> None:
        """Learn which servers there are."""
        found: dict[object, RedisTarget] = {}
        for target in self._targets:
            cluster = target.cluster
            if cluster is None:
                found[target.safe_url] = target
                continue
            try:
                await cluster.look(max_age_s=10 * INTERVAL_S)
            except DialError:
                return
            found |= {shard.primary: cluster.server(shard.primary) for shard in cluster.shards}
        for name in self._servers.keys() - found.keys():
            await self._servers.pop(name).client.aclose()
        for name in found.keys() - self._servers.keys():
            is_alone = all(target.cluster is None for target in self._targets)
            self._servers[name] = _Server(found[name], has_probe=is_alone)


def _is_oom(error: RedisError) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or str(error).startswith(("OOM", "command not allowed when used"))
