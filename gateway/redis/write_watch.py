"""WriteWatch: checks every INTERVAL_S whether each Redis server that the node uses accepts writes.

Rules:
- A server is full if it rejects a write because of memory (OOM), or if it has used FULL of its maxmemory and evicts no
  keys. It has room again below ROOM; the difference keeps readiness from flapping.
- The used memory is read by INFO.
- A server refuses writes if it rejects them for another reason: a replica or a disk is missing (NOREPLICAS, MISCONF),
  it is a replica itself (READONLY), or the user lacks a permission (NOPERM), also that to run INFO. The probe writes
  like services do: in a script, which nodes run by its digest. A successful PUBLISH would not prove that writes work.
- The probe is one command. It also asks whether the user may send a script in full, which nodes do only if Redis does
  not know the script.
- In a Cluster each primary has a probe, under a key in one of its slots.
- A server that does not answer is not counted as full; the canary detects that.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import hiredis
import structlog

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.cluster.shard_map import Shard, shard_map_of
from snorky.gateway.redis.cluster.slots import slot_of
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.commands import CommandPipeline
from snorky.gateway.redis.connection.refusals import Refusal, refusal_of
from snorky.gateway.redis.connection.resp import DialError, command
from snorky.gateway.redis.keys import node_key, sharded_canary_name

__all__ = ["WriteWatch"]

INTERVAL_S: Final = 2.0
PROBE_MS: Final = 4_000  # how long a probe is kept
FULL: Final = 0.98  # of maxmemory; a burst of writes may use the rest before the next check
ROOM: Final = 0.95

_PROBE: Final = b"""
local missing = ''
for _, words in ipairs({{'EVAL', '', '0'}, {'SCRIPT', 'LOAD', ''}}) do
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(words)) then
    missing = 'NOPERM to run ' .. words[1]
  end
end
return {
  redis.pcall('SET', KEYS[1], '', 'PX', ARGV[1]), redis.pcall('TIME'), missing, redis.pcall('INFO', 'memory'),
}
"""
_PROBE_DIGEST: Final = hashlib.sha1(_PROBE, usedforsecurity=False).hexdigest().encode()
_REFUSALS: Final = ("NOREPLICAS", "MISCONF", "READONLY", "NOPERM")
_FORBIDDEN: Final = ("can't run this command", "ACL failure in script")  # within a script: of Redis, of Valkey

_log = structlog.get_logger("snorky.redis")


class _Server:
    """The state of one server."""

    def __init__(self, target: RedisTarget, *, key: str, node_id: str, metrics: Metrics) -> None:
        self.commands = CommandPipeline(
            target,
            role="watch",
            client_name=f"snorky:{node_id}:watch",
            metrics=metrics,
            timeout_s=INTERVAL_S,
            dial_timeout_s=INTERVAL_S,
        )
        self.commands.start()
        self.url = target.safe_url
        self.is_full = False
        self.used = 0.0  # fraction of maxmemory; 0: unknown, or there is no maxmemory
        self.refusal = ""
        self.key = key
        self._evicts = False

    async def look(self) -> None:
        """Check the server once. Raises BrokerUnavailable: it does not answer."""
        (answer,) = await self.commands.send([_probing(b"EVALSHA", _PROBE_DIGEST, self.key.encode())])
        if isinstance(answer, hiredis.ReplyError) and refusal_of(answer) is Refusal.NO_SCRIPT:
            (answer,) = await self.commands.send([_probing(b"EVAL", _PROBE, self.key.encode())])
        if isinstance(answer, list):
            for part in answer:
                self.commands.on_refused(part)  # the connection itself sees only an error that is the whole answer
        parts = answer if isinstance(answer, list) else [answer]
        is_refused, refusal = any(map(_is_oom, parts)), next(filter(None, map(_refusal, parts)), "")
        if not (is_refused or refusal) and any(isinstance(part, hiredis.ReplyError) for part in parts):
            return  # a temporary error: it is loading, or the slot is moving
        self._tell_refusal(refusal)
        self._read_memory(parts[-1])
        bound = ROOM if self.is_full else FULL
        self._tell(is_refused or (self.used >= bound and not self._evicts))

    def _read_memory(self, answer: object) -> None:
        """Update the used memory from the answer to INFO; keep it if the answer is an error."""
        if not isinstance(answer, bytes):
            return
        info = dict(line.split(":", 1) for line in answer.decode(errors="replace").split("\r\n") if ":" in line)
        used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
        self.used = used / most if most else 0.0
        self._evicts = info.get("maxmemory_policy") != "noeviction"

    def _tell_refusal(self, refusal: str) -> None:
        if refusal and not self.refusal:
            _log.error("redis refuses writes", server=self.url, error=refusal)
        elif self.refusal and not refusal:
            _log.info("redis takes writes again", server=self.url)
        self.refusal = refusal

    def _tell(self, is_full: bool) -> None:
        if is_full == self.is_full:
            return
        self.is_full = is_full
        if is_full:
            _log.error(
                "redis is full",
                server=self.url,
                used=f"{self.used:.0%}" if self.used else "unknown",
                remedy="raise maxmemory, or find out what fills it (redis-cli --bigkeys, snorky_limit_hits_total)",
            )
        else:
            _log.info("redis has room again", server=self.url)


class WriteWatch:
    """Context manager that checks the servers while entered. targets: each Redis; of a Cluster, all its primaries."""

    def __init__(self, targets: Sequence[RedisTarget], *, prefix: str, node_id: str, metrics: Metrics) -> None:
        self._targets = targets
        self._prefix = prefix
        self._node_id = node_id
        self._metrics = metrics
        self._servers: dict[object, _Server] = {}
        self._task: asyncio.Task[None] | None = None
        metrics.redis_full.set_function(lambda: float(self.is_full))
        metrics.redis_refusing.set_function(lambda: float(bool(self.refusal)))
        metrics.redis_memory_used.set_function(
            lambda: max((server.used for server in self._servers.values()), default=0.0)
        )

    @property
    def is_full(self) -> bool:
        """True while one of the servers has no memory left for writes."""
        return any(server.is_full for server in self._servers.values())

    @property
    def refusal(self) -> str:
        """The servers that reject writes for another reason than memory, with the reason; "" = none."""
        refusing = (server for server in self._servers.values() if server.refusal)
        return "; ".join(f"{server.url}: {server.refusal}" for server in refusing)[:1000]

    async def __aenter__(self) -> Self:
        """Start; returns at once, whether Redis is reachable or not."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="write watch")
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
            await server.commands.stop()

    async def _run(self) -> None:
        while True:
            try:
                await self._find()
                await asyncio.gather(*(self._look(server) for server in self._servers.values()))
            except Exception:  # the top of a task
                _log.exception("check whether redis accepts writes failed")
            await asyncio.sleep(INTERVAL_S)

    async def _look(self, server: _Server) -> None:
        try:
            await server.look()
        except BrokerUnavailable:
            pass  # the canary detects an unreachable server

    def _key_on(self, shard: Shard) -> str:
        """Find a probe key in one of a shard's slots; the previous one, if its slot is still there."""
        known = self._servers.get(shard.primary)
        if known is not None and shard.has(slot_of(known.key.encode())):
            return known.key
        name = sharded_canary_name(self._prefix, self._node_id, lambda each: shard.has(slot_of(each)))
        return f"{name.decode()}:probe"

    async def _find(self) -> None:
        """Update the list of servers."""
        found: dict[object, tuple[RedisTarget, str]] = {}
        for target in self._targets:
            cluster = shard_map_of(target)
            if cluster is None:
                found[target.safe_url] = (target, f"{node_key(self._prefix, self._node_id)}:probe")
                continue
            try:
                await cluster.look(max_age_s=10 * INTERVAL_S)
            except DialError:
                return
            for shard in cluster.shards:
                found[shard.primary] = (cluster.server(shard.primary), self._key_on(shard))
        for name in self._servers.keys() - found.keys():
            await self._servers.pop(name).commands.stop()
        for name in found.keys() - self._servers.keys():
            target, key = found[name]
            self._servers[name] = _Server(target, key=key, node_id=self._node_id, metrics=self._metrics)
        for place, (_, key) in found.items():
            self._servers[place].key = key


def _probing(verb: bytes, script: bytes, key: bytes) -> bytes:
    """Make the command of a probe. Its answer: those to SET and TIME, the missing right or b"", and that to INFO."""
    return command(verb, script, b"1", key, b"%d" % PROBE_MS)


def _is_oom(answer: object) -> bool:
    return isinstance(answer, hiredis.ReplyError) and str(answer).startswith("OOM")


def _refusal(answer: object) -> str:
    """Return the error if a write was rejected for another reason than memory; "" = other errors, or temporary ones."""
    if isinstance(answer, bytes) and answer.startswith(b"NOPERM"):
        return answer.decode()
    text = str(answer) if isinstance(answer, hiredis.ReplyError) else ""
    return text[:200] if text.startswith(_REFUSALS) or any(part in text for part in _FORBIDDEN) else ""
