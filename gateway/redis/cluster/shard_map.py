"""ShardMap: tracks which server has which slots of a Redis Cluster.

Rules:
- A *shard* is a primary with its replicas. It remains the same shard after a failover, so connections are kept per
  shard and follow its primary, as behind Sentinel. A shard is recognized by its primary, or by a new primary that was
  one of its replicas; not by other replicas, which a Cluster may move between shards.
- All known servers are asked at once. The answer with the highest epoch wins, preferably from a server that reports
  `cluster_state:ok`: a server that was cut off has outdated information.
- Callers that notice a change (MOVED, ASK, a lost connection) request a refresh; concurrent callers share one.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import hiredis
import structlog

from snorky.gateway.redis.cluster.slots import SLOTS, slot_of
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.resp import ConnectionLost, DialError, RespConnection, ask, command, dial

__all__ = ["Shard", "ShardMap", "shard_map_of"]

ASK_TIMEOUT_S: Final = 0.5
LOOK_S: Final = 1.0  # polling finds moved slots even if no command was redirected

_log = structlog.get_logger("snorky.redis")
_Address = tuple[str, int]


@dataclass(slots=True, eq=False)
class Shard:
    """A primary and its replicas. target: always connects to the current primary."""

    primary: _Address
    primary_id: str
    members: set[str]  # ids of all its servers, as last seen
    slots: list[tuple[int, int]]  # ranges, both ends included
    target: RedisTarget = field(init=False)

    def has(self, slot: int) -> bool:
        """True if the shard has a slot."""
        return any(first <= slot <= last for first, last in self.slots)


@dataclass(frozen=True, slots=True)
class _View:
    is_ok: bool
    epoch: int
    shards: list[Shard]
    servers: set[_Address]


class _Route:
    """Implements `Route`: finds the primary of one shard, or of the shard that has a slot."""

    def __init__(self, cluster: "ShardMap", shard_of: Callable[[], Shard | None]) -> None:
        self._cluster = cluster
        self._shard_of = shard_of

    @property
    def addresses(self) -> str:
        """See Route."""
        return self._cluster.addresses

    @property
    def latest(self) -> RedisTarget | None:
        """See Route."""
        shard = self._shard_of()
        return None if shard is None else self._cluster.server(shard.primary)

    async def find(self, *, max_age_s: float = 0.0) -> RedisTarget:
        """See Route."""
        await self._cluster.look(max_age_s=max_age_s)
        found = self.latest
        if found is None:
            raise DialError("no server of the cluster has these slots")
        return found


class ShardMap:
    """The shards of one Cluster, refreshed while at least one caller has started it. servers: seeds, with the login."""

    def __init__(self, servers: Sequence[RedisTarget]) -> None:
        self._login = servers[0]
        self._seeds = [(each.host, each.port) for each in servers]
        self._servers: set[_Address] = set(self._seeds)
        self.shards: list[Shard] = []
        self._by_slot: list[Shard | None] = [None] * SLOTS
        self._listeners: list[Callable[[], None]] = []
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")  # loop time
        self._problem = ""
        self._refresh_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def addresses(self) -> str:
        """HOST:PORT of the configured servers, separated by commas."""
        return ",".join(self.server(each).address for each in self._seeds)

    def start(self, on_change: Callable[[], None]) -> None:
        """Start refreshing; returns at once. on_change: called when slots or primaries have changed; must not block."""
        self._listeners.append(on_change)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="redis-cluster")

    async def stop(self, on_change: Callable[[], None]) -> None:
        """Undo one `start`; the last one stops the refresh."""
        if on_change in self._listeners:
            self._listeners.remove(on_change)
        if not self._listeners:
            task, self._task = self._task, None
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def refresh_now(self) -> None:
        """Refresh soon: a command was redirected to another server."""
        self._refresh_now.set()

    def by_slot(self, slot: int) -> Shard | None:
        """Find the shard that has a slot; None = unknown."""
        return self._by_slot[slot]

    def shard_of(self, name: bytes) -> Shard | None:
        """Find the shard that has a key or channel; None = unknown."""
        return self._by_slot[slot_of(name)]

    def target_of(self, name: bytes) -> RedisTarget:
        """Make a target that always connects to the primary of a key."""
        return replace(self._login, route=_Route(self, lambda: self.shard_of(name)))

    def server(self, address: _Address) -> RedisTarget:
        """Make a target of one server."""
        return replace(self._login, host=address[0], port=address[1], route=None, cluster=None)

    async def look(self, *, max_age_s: float = 0.0) -> None:
        """Refresh the slots, unless that was done within `max_age_s`. Raises DialError: no server answers."""
        loop = asyncio.get_running_loop()
        called_at = loop.time()
        async with self._asking:
            if self._asked_at < called_at - max_age_s:
                self._problem = await self._ask()
                self._asked_at = loop.time()
        if self._problem:
            raise DialError(self._problem)

    async def _run(self) -> None:
        while True:
            self._refresh_now.clear()
            try:
                await self.look(max_age_s=LOOK_S / 2)
            except DialError as error:
                _log.info("cluster slots not read", error=str(error))
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._refresh_now.wait()
                await asyncio.sleep(0.05)  # one refresh for many commands that are redirected at once
            except TimeoutError:
                pass

    # -- asking ------------------------------------------------------------------------------------------------

    async def _ask(self) -> str:
        """Refresh from all servers. Returns a description of the problem, or ""."""
        asked = sorted(self._servers | set(self._seeds))
        answers = await asyncio.gather(*(self._view(each) for each in asked), return_exceptions=True)
        views = [answer for answer in answers if isinstance(answer, _View)]
        if not views:
            problems = [f"{host}:{port}: {error}" for (host, port), error in zip(asked, answers, strict=True)]
            return f"no server of the cluster answers: {'; '.join(problems)[:300]}"
        best = max(views, key=lambda view: (view.is_ok, view.epoch))
        self._servers = set().union(*(view.servers for view in views))
        self._take(best.shards)
        return ""

    def _take(self, found: Iterable[Shard]) -> None:
        """Update the shards from an answer; known shards remain the same objects."""
        shards: list[Shard] = []
        is_changed = False
        by_primary = {each.primary_id: each for each in self.shards}
        found = sorted(found, key=lambda new: new.primary_id not in by_primary)  # exact matches first
        for new in found:
            known = by_primary.get(new.primary_id) or next(
                (each for each in self.shards if new.primary_id in each.members and each not in shards), None
            )
            if known is None:
                new.target = replace(self._login, route=_Route(self, lambda shard=new: shard))  # type: ignore[misc]
                shards.append(new)
                is_changed = True
                continue
            if known.primary != new.primary:
                _log.warning("another primary", redis=new.primary, before=known.primary)
            is_changed |= known.slots != new.slots or known.primary != new.primary
            known.primary, known.slots = new.primary, new.slots
            known.primary_id, known.members = new.primary_id, new.members
            shards.append(known)
        if not is_changed and len(shards) == len(self.shards):
            return
        self.shards = shards
        self._by_slot = [None] * SLOTS
        for shard in shards:
            for first, last in shard.slots:
                self._by_slot[first : last + 1] = [shard] * (last + 1 - first)
        for listener in list(self._listeners):
            listener()

    async def _view(self, address: _Address) -> _View:
        wire: RespConnection | None = None
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                wire = await dial(self.server(address), name="snorky:cluster", timeout_s=ASK_TIMEOUT_S)
                info, slots = await ask(wire, command(b"CLUSTER", b"INFO"), command(b"CLUSTER", b"SLOTS"))
        except TimeoutError as error:
            raise DialError("no answer") from error
        finally:
            if wire is not None:
                wire.close(ConnectionLost("asked"))
                await wire.wait_closed()
        return _read_view(info, slots, address)


def shard_map_of(target: RedisTarget) -> ShardMap | None:
    """Return the Cluster of a target; None = it is one server."""
    return target.cluster if isinstance(target.cluster, ShardMap) else None


def _read_view(info: Any, slots: Any, asked: _Address) -> _View:
    """Read CLUSTER INFO and CLUSTER SLOTS. Raises DialError: the server is not a member of a cluster."""
    for answer in (info, slots):
        if isinstance(answer, hiredis.ReplyError):
            raise DialError(str(answer))
    facts = dict(line.split(":", 1) for line in info.decode().split("\r\n") if ":" in line)
    shards: dict[str, Shard] = {}
    servers = {asked}
    for first, last, *nodes in slots:
        # a server that does not know its own address returns an empty one: then it is the server that was asked
        places = [((host or b"").decode() or asked[0], int(port)) for host, port, *_ in nodes]
        ids = {node[2].decode() for node in nodes}
        servers.update(places)
        primary_id = nodes[0][2].decode()
        shard = shards.setdefault(primary_id, Shard(places[0], primary_id, ids, []))
        shard.slots.append((first, last))
    return _View(
        facts.get("cluster_state") == "ok", int(facts.get("cluster_current_epoch", 0)), list(shards.values()), servers
    )
