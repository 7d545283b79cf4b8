"""RedisRevocations: the cluster's list of revoked identities and tokens, in one sorted set.

`PREFIX:{revocations}`: member KIND:NAME; score: milliseconds of Redis' clock, always higher than all scores before,
even if the clock is set back. So new entries are those above the highest score that a node has seen. Each write removes
entries that are older than any valid token can be, and the whole set expires.

A node reads the set once per second (O(nodes) commands). Without clients it reads every IDLE_S, because it has no
one to disconnect; and at once when a client connects or logs in. All logins at that time wait for one read. If it
fails, they fail, and the next login reads again.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog

from snorky.gateway.contracts.revocations import Kind, Revocation, Watcher
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.keys import revocations_key

__all__ = ["RedisRevocations"]

INTERVAL_S: Final = 1.0  # the documented limit is 5 s, so one or two failed reads are tolerated
IDLE_S: Final = 10.0  # between two reads of a node without clients; so a later read is short
READ_MAX: Final = 1000  # entries per command
LATE_MS: Final = 60_000  # entries this far below the highest score are read again: a new primary's clock may be behind

_log = structlog.get_logger("snorky.redis")


class RedisRevocations:
    """Implements `contracts.revocations.Revocations`. commands: to one Redis; not started.

    keep_s: the longest time for which a token can be valid. interval_s: between two reads of the set.
    """

    def __init__(self, commands: Commands, *, prefix: str, keep_s: float, interval_s: float = INTERVAL_S) -> None:
        self._commands = commands
        self._scripts = Scripts(self._commands)
        self._has_started = False  # it connects when it is first used
        self._key = revocations_key(prefix).encode()
        self._keep_ms = round(keep_s * 1000)
        self._interval_s = interval_s
        self._top = 0.0  # highest score seen
        self._seen: dict[str, float] = {}  # entries of the last LATE_MS
        self._has_clients: Callable[[], bool] = lambda: True
        self._is_idle = False  # entries may be unread because there were no clients
        self._read_at_s = 0.0  # loop time
        self._hurry = asyncio.Event()
        self._beginning: asyncio.Task[None] | None = None  # the read for which logins wait
        self._task: asyncio.Task[None] | None = None

    def read_while(self, has_clients: Callable[[], bool]) -> None:
        """See Revocations."""
        self._has_clients = has_clients

    def hurry(self) -> None:
        """See Revocations."""
        if self._is_idle:
            self._hurry.set()

    async def begin(self, watcher: Watcher) -> None:
        """See Revocations."""
        if self._task is None or self._is_idle:
            await self._catch_up(watcher)

    async def stop(self) -> None:
        """See Revocations."""
        tasks = [task for task in (self._task, self._beginning) if task is not None]
        self._task = self._beginning = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._has_started = True  # a later call fails instead of connecting
        await self._commands.stop()

    async def add(self, kind: Kind, name: str) -> None:
        """See Revocations."""
        await self._run(Call("revoke", [self._key], [_member(kind, name), b"%d" % self._keep_ms]))

    async def find(self, identity: str, token_id: str | None) -> list[Revocation]:
        """See Revocations."""
        wanted = [(Kind.IDENTITY, identity)] + ([(Kind.TOKEN, token_id)] if token_id is not None else [])
        scores = await self._run(command(b"ZMSCORE", self._key, *(_member(*each) for each in wanted)))
        pairs = zip(wanted, scores, strict=True)
        return [Revocation(kind, name, float(score) / 1000) for (kind, name), score in pairs if score is not None]

    async def now_s(self) -> float:
        """See Revocations."""
        return float(await self._run(Call("revocation_time", [self._key], []))) / 1000

    async def _watch(self, watcher: Watcher) -> None:
        is_failing = False
        while True:
            self._hurry.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._hurry.wait()
            if not self._has_clients() and asyncio.get_running_loop().time() - self._read_at_s < IDLE_S:
                self._is_idle = True
                continue
            try:
                if self._is_idle:
                    await self._catch_up(watcher)
                else:
                    await self._read(watcher)
            except Exception as error:  # the top of a task
                if not is_failing:
                    what = error.what if isinstance(error, BrokerUnavailable) else repr(error)
                    _log.warning("revocations not read", error=what)
                is_failing = True
            else:
                is_failing = False

    async def _catch_up(self, watcher: Watcher) -> None:
        """Begin to watch, or read what was added while there were no clients; calls at the same time share one read.

        Raises BrokerUnavailable.
        """
        if self._beginning is None or self._beginning.done():
            self._beginning = asyncio.get_running_loop().create_task(self._begin(watcher), name="revocations begin")
        beginning = self._beginning
        try:
            await asyncio.shield(beginning)  # others wait for it too
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if beginning.cancelled() and task is not None and not task.cancelling():
                raise BrokerUnavailable("the node is stopping") from None
            raise

    async def _begin(self, watcher: Watcher) -> None:
        if self._task is not None:
            await self._read(watcher)
            self._is_idle = False  # not before: a login meanwhile waits, and after an error the next one reads
            return
        last = await self._run(command(b"ZRANGE", self._key, b"0", b"0", b"REV", b"WITHSCORES"))
        self._top = float(last[1]) if last else 0.0
        self._seen = dict(await self._new())  # known entries: each login looks them up itself
        self._task = asyncio.get_running_loop().create_task(self._watch(watcher), name="revocations")

    async def _read(self, watcher: Watcher) -> None:
        began_s, found = asyncio.get_running_loop().time(), await self._new()
        self._read_at_s = began_s
        for member, score in found:
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
        floor = str(max(0.0, self._top - LATE_MS)).encode()
        while True:
            limit = (b"LIMIT", b"%d" % len(found), b"%d" % READ_MAX)
            words = await self._run(command(b"ZRANGE", self._key, floor, b"+inf", b"BYSCORE", *limit, b"WITHSCORES"))
            page = _pairs(words)
            found += page
            if len(page) < READ_MAX:
                return found

    async def _run(self, step: Call | bytes) -> Any:
        """Run a script or command; returns its answer. Raises BrokerUnavailable."""
        if not self._has_started:
            self._has_started = True
            self._commands.start()
        (answer,) = await self._scripts.run(step)
        return answer


def _member(kind: Kind, name: str) -> bytes:
    return f"{kind.value}:{name}".encode()


def _pairs(words: Sequence[bytes]) -> list[tuple[str, float]]:
    """Read members with their scores."""
    pairs = zip(words[::2], words[1::2], strict=True)
    return [(member.decode("utf-8", "replace"), float(score)) for member, score in pairs]
