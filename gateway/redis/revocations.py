"""RedisRevocations: the cluster's list of revoked identities and tokens, in one sorted set.

`PREFIX:{revocations}`: member KIND:NAME; score: milliseconds of Redis' clock, always higher than all scores before,
even if the clock is set back. So new entries are those above the highest score that a node has seen. Each write removes
entries that are older than any valid token can be, and the whole set expires.

A node reads the set once per second (O(nodes) commands), beginning with the first login on that node.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog
from redis.exceptions import RedisError

from snorky.gateway.contracts.revocations import Kind, Revocation, Watcher
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.keys import revocations_key

__all__ = ["RedisRevocations"]

INTERVAL_S: Final = 1.0  # the documented limit is 5 s, so one or two failed reads are tolerated
TIMEOUT_S: Final = 2.0
CONNECTIONS_MAX: Final = 8
READ_MAX: Final = 1000  # entries per command
LATE_MS: Final = 60_000  # entries this far below the highest score are read again: a new primary's clock may be behind

# KEYS: the set. ARGV: member, how long it is kept in ms.
_ADD: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local keep = tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%d', now - keep))
local top = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if top[2] and tonumber(top[2]) >= now then
  now = tonumber(top[2]) + 1
end
redis.call('ZADD', KEYS[1], string.format('%d', now), ARGV[1])
redis.call('PEXPIRE', KEYS[1], string.format('%d', keep))
return string.format('%d', now)
"""

_log = structlog.get_logger("snorky.redis")


class RedisRevocations:
    """Implements `contracts.revocations.Revocations`. keep_s: the longest time for which a token can be valid."""

    def __init__(self, target: RedisTarget, *, prefix: str, keep_s: float, interval_s: float = INTERVAL_S) -> None:
        self._client: Any = client_of(target, timeout_s=TIMEOUT_S, max_connections=CONNECTIONS_MAX)
        self._turns = asyncio.Semaphore(CONNECTIONS_MAX)  # the pool would reject the ninth of many concurrent logins
        self._key = revocations_key(prefix)
        self._keep_ms = round(keep_s * 1000)
        self._interval_s = interval_s
        self._top = 0.0  # highest score seen
        self._seen: dict[str, float] = {}  # entries of the last LATE_MS
        self._beginning = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def begin(self, watcher: Watcher) -> None:
        """See Revocations."""
        if self._task is not None:
            return
        async with self._beginning:
            if self._task is None:
                found = await self._asked(lambda: self._client.zrange(self._key, 0, 0, desc=True, withscores=True))
                self._top = found[0][1] if found else 0.0
                self._seen = dict(await self._new())  # known entries: each login looks them up itself
                self._task = asyncio.get_running_loop().create_task(self._watch(watcher), name="revocations")

    async def stop(self) -> None:
        """See Revocations."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._client.aclose()

    async def add(self, kind: Kind, name: str) -> None:
        """See Revocations."""
        await self._asked(lambda: self._client.eval(_ADD, 1, self._key, f"{kind.value}:{name}", self._keep_ms))

    async def find(self, identity: str, token_id: str | None) -> list[Revocation]:
        """See Revocations."""
        wanted = [(Kind.IDENTITY, identity)] + ([(Kind.TOKEN, token_id)] if token_id is not None else [])
        members = [f"{kind.value}:{name}" for kind, name in wanted]
        scores = await self._asked(lambda: self._client.zmscore(self._key, members))
        pairs = zip(wanted, scores, strict=True)
        return [Revocation(kind, name, score / 1000) for (kind, name), score in pairs if score is not None]

    async def _watch(self, watcher: Watcher) -> None:
        is_failing = False
        while self._task is not None:  # not `while True`: redis-py may swallow a cancellation
            await asyncio.sleep(self._interval_s)
            try:
                await self._read(watcher)
            except Exception as error:  # the top of a task
                if not is_failing:
                    _log.warning("revocations not read", error=str(error) or repr(error))
                is_failing = True
            else:
                is_failing = False

    async def _read(self, watcher: Watcher) -> None:
        for member, score in await self._new():
            if self._seen.get(member) == score:
                continue
            self._seen[member] = score
            self._top = max(self._top, score)
            kind, _, name = member.partition(":")
            with suppress(ValueError):  # a kind that only newer nodes know
                watcher(Revocation(Kind(kind), name, score / 1000))
        floor = self._top - LATE_MS
        self._seen = {member: score for member, score in self._seen.items() if score >= floor}

    async def _new(self) -> list[tuple[str, float]]:
        """Read the entries above the highest score seen, and those up to LATE_MS below it."""
        found: list[tuple[str, float]] = []
        floor = max(0.0, self._top - LATE_MS)
        while True:
            options = {"byscore": True, "withscores": True, "offset": len(found), "num": READ_MAX}
            page = await self._asked(partial(self._client.zrange, self._key, floor, math.inf, **options))
            found += [(member.decode("utf-8", "replace"), score) for member, score in page]
            if len(page) < READ_MAX:
                return found

    async def _asked(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        try:
            async with self._turns:
                return await ask()
        except (RedisError, OSError, TimeoutError) as error:
            raise BrokerUnavailable("revocations") from error
