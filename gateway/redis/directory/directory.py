"""RedisDirectory: the rosters, unique names, direct messages and tokens of the cluster, on one Redis.

A *holding* is one thing that a connection owns: a roster entry or a name. Rules:
- A holding is recorded in this node's memory before it is written, and in the owner's index before its state. So after
  any failure this node or a reaper can find and remove it.
- After every write, on the same Redis connection, the node checks whether its incarnation was fenced; if so, the write
  came too late and is undone.
- Two connections: reading a long list must not delay the renewal of the lease.
"""

import asyncio
import math
import re
from collections import deque
from collections.abc import Sequence
from typing import Any

import structlog

from snorky.gateway.contracts.directory import Entered, LocalState, Member, Owner, RosterSize, RosterSnapshot
from snorky.gateway.errors import BrokerUnavailable, ConfigurationError, ConnectionClosed
from snorky.gateway.metrics import Metrics
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.directory.comparison import Comparison
from snorky.gateway.redis.directory.direct import Direct
from snorky.gateway.redis.directory.holdings import Holdings, LocalHoldings
from snorky.gateway.redis.directory.lease import Lease, Rider, Timings
from snorky.gateway.redis.directory.names import Claims
from snorky.gateway.redis.directory.node_states import NodeReport
from snorky.gateway.redis.directory.owned_index import OwnedIndex, OwnedItem, OwnedName, RosterEntry
from snorky.gateway.redis.directory.reaper import Reaper
from snorky.gateway.redis.directory.reconciler import Reconciler
from snorky.gateway.redis.directory.reindex import Reindex
from snorky.gateway.redis.directory.rosters import ANOTHERS, TOO_LARGE, Rosters
from snorky.gateway.redis.directory.tokens import Tokens
from snorky.gateway.redis.keys import claim_key, owned_key
from snorky.gateway.redis.pubsub.broker import NodeBroker

__all__ = ["RedisDirectory"]

COMPLAIN_EVERY_S = 1.0  # at most one log line on full rosters; the metric counts all rejections
INCARNATIONS_MAX = 64  # the latest incarnations of this node, whose direct messages are still accepted

_log = structlog.get_logger("snorky.redis")


class RedisDirectory:
    """Implements `snorky.gateway.contracts.directory.Directory` (its docstrings are the contract).

    commands, lease_commands: connections to one Redis; this class starts and stops them. broker: this node's on that
    Redis, for direct messages; must be started before. node_id: letters, digits and `_.-`, unique. tag: the prefix of
    its incarnations, if the node uses several Redis. roster_max_bytes: see Limits; 0 = no limit. timeout_s: for the
    acknowledgement of a direct message.
    """

    def __init__(
        self,
        commands: Commands,
        lease_commands: Commands,
        *,
        prefix: str,
        node_id: str,
        broker: NodeBroker,
        metrics: Metrics,
        timings: Timings | None = None,
        tag: str = "",
        roster_max_bytes: int = 0,
        timeout_s: float,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", node_id):
            raise ConfigurationError(f"a node's id may contain only letters, digits and _.-, not {node_id[:100]!r}")
        timings = timings or Timings()
        self._broker = broker
        self._prefix = prefix
        self._node_id = node_id
        self._timeout_s = timeout_s
        self._local_state: LocalState | None = None
        self._was_connected = False
        self._heard = asyncio.Event()  # set when this node receives direct messages
        self._subscribing: asyncio.Task[None] | None = None

        self._commands, self._lease_commands = commands, lease_commands
        self._scripts, lease_scripts = Scripts(commands), Scripts(lease_commands)
        self._lease = Lease(lease_scripts, prefix=prefix, node_id=node_id, timings=timings, tag=tag)
        self._incarnations = deque([self._lease.incarnation], maxlen=INCARNATIONS_MAX)
        self._local_holdings = LocalHoldings(echo_s=timings.sweep_s)
        self._owned_index = OwnedIndex(self._scripts, prefix=prefix, notices=self._notice)
        self._full = metrics.limit_hits.labels("roster_max_bytes")
        self._complained_at = -math.inf
        self._rosters = Rosters(
            self._scripts, prefix=prefix, notices=self._notice, max_bytes=roster_max_bytes, on_full=self._on_full
        )
        self._claims = Claims(self._scripts, prefix=prefix)
        self._tokens = Tokens(self._scripts, prefix=prefix)
        self._reconciler = Reconciler(
            self._scripts,
            prefix=prefix,
            lease=self._lease,
            local_holdings=self._local_holdings,
            owned_index=self._owned_index,
            rosters=self._rosters,
            claims=self._claims,
            comparison=Comparison(
                self._scripts,
                prefix=prefix,
                local_holdings=self._local_holdings,
                owned_index=self._owned_index,
                mended=metrics.directory_mended,
            ),
            contest_s=2 * timings.ttl_s,  # dead nodes are reaped within this time
            is_searching=lambda: self._reindex.is_searching,
        )
        self._reindex = Reindex(self._scripts, prefix=prefix, node_id=node_id, on_done=self._reconciler.on_searched)
        self._reaper = Reaper(
            lease_scripts, prefix=prefix, lease=self._lease, timings=timings, sweep=self._owned_index.sweep
        )
        self._direct = Direct(
            broker,
            node_id=node_id,
            is_mine=lambda incarnation: incarnation in self._incarnations,
            on_message=lambda serial, message: self._present.on_direct(serial, message),
            on_lost=lambda names, name, serial: self._reconciler.suspect(
                [OwnedName(names, name, serial)], is_taken=True
            ),
            on_interrupted=lambda: self._reconciler.suspect(self._local_holdings.names()),
            timeout_s=timeout_s,
        )
        lease_commands.on_up = self._lease.renew_now
        commands.on_up = self._on_connected
        self._lease.on_fenced = self._on_fenced
        self._lease.on_lost_state = self._reconciler.on_lost_state
        self._lease.on_renewed = self._reconciler.on_renewed

    # -- lifecycle ---------------------------------------------------------------------------------------------

    @property
    def incarnation(self) -> str:
        return self._lease.incarnation

    @property
    def is_held(self) -> bool:
        """True while this node may enter rosters and claim names: its lease is valid and direct messages reach it."""
        return self._lease.is_held and self._heard.is_set()

    @property
    def report(self) -> NodeReport:
        """This node's state, which the renewals of its lease carry."""
        return self._lease.report

    def carry(self, rider: Rider) -> None:
        """Run the rider's script with each renewal of the lease."""
        self._lease.riders.append(rider)

    def is_sure(self, names: str) -> bool:
        return self._lease.is_held and not self._reconciler.is_asserting

    @property
    def is_heard(self) -> bool:
        """True while this node receives publications from its Redis."""
        return not self._broker.is_redis_unverified

    async def start(self, local_state: LocalState) -> None:
        self._local_state = local_state
        self._commands.start()
        self._lease_commands.start()
        self._lease.start()
        self._reaper.start()
        self._reconciler.start(local_state)
        self._reindex.start()
        self._subscribing = asyncio.get_running_loop().create_task(self._subscribe_direct(), name="redis-direct")

    async def stop(self) -> None:
        subscribing, self._subscribing = self._subscribing, None
        if subscribing is not None:
            subscribing.cancel()
            await asyncio.gather(subscribing, return_exceptions=True)
        self._direct.stop()
        await self._reaper.stop()
        await self._reindex.stop()
        await self._reconciler.stop()
        await self._rosters.stop()
        await self._lease.stop(is_clean=self._local_holdings.is_empty and self._reconciler.is_idle)
        await self._commands.stop()
        await self._lease_commands.stop()

    async def _subscribe_direct(self) -> None:
        while not self._heard.is_set():
            try:
                await self._direct.start()
            except BrokerUnavailable as error:
                _log.warning("direct messages do not reach this node yet", error=error.what)
            else:
                self._heard.set()

    def _on_connected(self) -> None:
        """Handle a new connection: the server may have restored an older copy, or be a promoted replica."""
        if self._was_connected:
            self._reconciler.on_lost_state()
        self._reindex.start_now()
        self._was_connected = True

    def _on_full(self, roster: str) -> None:
        self._full.inc()
        now = asyncio.get_running_loop().time()
        if now - self._complained_at >= COMPLAIN_EVERY_S:
            self._complained_at = now
            _log.warning("roster is full", roster=roster[:100], help="limits.roster_max_bytes")

    def _on_fenced(self, former: str) -> None:
        self._incarnations.append(self._lease.incarnation)
        self._reconciler.on_fenced(former)

    @property
    def _present(self) -> LocalState:
        if self._local_state is None:
            raise BrokerUnavailable("the directory is not started")
        return self._local_state

    def _notice(self, roster: str, member: Member, *, has_joined: bool, is_identity: bool) -> bytes | None:
        return self._present.notice(roster, member, has_joined=has_joined, is_identity=is_identity)

    # -- rosters -----------------------------------------------------------------------------------------------

    async def enter(
        self,
        roster: str,
        serial: int,
        identity: str,
        *,
        entry: str = "",
        data: Any = None,
        lists_members: bool = True,
    ) -> Entered:
        place = RosterEntry(roster, serial, entry)
        async with self._local_holdings.locked(serial) as holdings:
            was_held = place in holdings.all
            while True:
                owner = await self._until_held()
                member = Member(identity, Owner.parse(f"{owner}:{serial}"), entry, data)
                status, version = await self._write(holdings, owner, place, self._rosters.entering(roster, member))
                if status == TOO_LARGE:
                    if not was_held:
                        self._drop(holdings, owner, place)
                    if await self._rosters.weigh(roster):
                        continue
                    raise self._rosters.full(roster)
                if status != ANOTHERS:
                    break
                await self._owned_index.give_back(owner, [place])  # the connection has another identity now
            if not lists_members:
                return Entered(status == 1, [], int(version))
            try:
                census = await self._rosters.listed(roster)
                return Entered(status == 1, list(census.members), census.version)
            except BaseException:
                if not was_held:  # the caller gets an error, so the entry must not remain
                    holdings.all.discard(place)
                    self._reconciler.schedule_cleanup(owner, place)
                raise

    async def update(
        self, roster: str, serial: int, *, entry: str = "", data: Any, notice: bytes | None = None
    ) -> bool:
        place = RosterEntry(roster, serial, entry)
        was_there = await self._rosters.update(roster, self._lease.owner, place, data=data, notice=notice)
        if not was_there and self._local_holdings.holds(place):
            self._reconciler.on_lost_state()  # also if a re-registration is running: it may have older data
        return was_there

    async def leave(self, roster: str, serial: int, *, entry: str = "") -> bool:
        return await self._give_back(serial, RosterEntry(roster, serial, entry))

    async def members(self, roster: str) -> list[Member]:
        return await self._rosters.members(roster)

    async def listed(self, roster: str) -> RosterSnapshot:
        return await self._rosters.listed(roster)

    async def versions(self, rosters: Sequence[str]) -> list[int | None]:
        return list(await self._rosters.versions(rosters))

    async def identity_counts(self, rosters: Sequence[str]) -> list[int]:
        return await self._rosters.identity_counts(rosters)

    async def size(self, roster: str) -> RosterSize:
        return await self._rosters.size(roster)

    async def census(self, roster: str) -> RosterSnapshot:
        return await self._rosters.census(roster)

    # -- names -------------------------------------------------------------------------------------------------

    async def claim(self, names: str, name: str, serial: int, identity: str | None = None) -> bool:
        held = OwnedName(names, name, serial)
        async with self._local_holdings.locked(serial) as holdings:
            owner = await self._until_held()
            call = self._claims.claiming(owner, held, identity, is_taking_over=True)
            answer = await self._write(holdings, owner, held, call)
            if isinstance(answer, bytes):
                self._direct.tell_lost(Owner.parse(answer.decode()), names, name)
            if answer != 0:
                return True
            self._drop(holdings, owner, held)
            return False

    async def release(self, names: str, name: str, serial: int) -> bool:
        return await self._give_back(serial, OwnedName(names, name, serial))

    async def find(self, names: str, name: str) -> Owner | None:
        return await self._claims.find(names, name)

    async def list_names(self, names: str) -> list[str]:
        return await self._claims.list_names(names)

    # -- connections and tokens --------------------------------------------------------------------------------

    async def disowned(self, serial: int) -> None:
        """Release everything that a connection owns. Never raises: if Redis does not answer, it is released later."""
        async with self._local_holdings.leaving(serial) as holdings:
            owner = self._lease.owner
            try:
                await self._owned_index.give_back(owner, holdings)
            except BrokerUnavailable as error:
                _log.info("release of a closed connection postponed", count=len(holdings), error=error.what)
                for holding in holdings:
                    self._reconciler.schedule_cleanup(owner, holding)
            else:
                self._owned_index.forget(owner, holdings)

    async def send(self, owner: Owner, message: bytes) -> bool:
        return await self._direct.send(owner, message)

    async def put_token(self, value: Any, ttl_s: float, *, token: str | None = None) -> str:
        """See Directory. token: store the value under this unused token instead of a new one."""
        return await self._tokens.put(value, ttl_s, token=token)

    async def read_token(self, token: str) -> Any | None:
        return await self._tokens.read(token)

    async def take_token(self, token: str, taker: str) -> Any | None:
        return await self._tokens.take(token, taker)

    # -- holdings of connections -------------------------------------------------------------------------------

    async def _until_held(self) -> str:
        """Wait for a lease; returns NODE:INCARNATION. Raises BrokerUnavailable: there is no valid lease."""
        if not (self._lease.renewals and self._heard.is_set()):
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._lease.until_first()
                    await self._heard.wait()
            except TimeoutError as error:
                raise BrokerUnavailable("no lease yet") from error
        if not self._lease.is_held:
            raise BrokerUnavailable("the lease could not be renewed")
        return self._lease.owner

    async def _write(self, holdings: Holdings, owner: str, holding: OwnedItem, call: Call) -> Any:
        """Index a holding and write its state; returns the script's answer. After a failure a cleanup is scheduled."""
        was_held = holding in holdings.all
        holdings.all.add(holding)
        self._local_holdings.cancel_cleanup(owner, holding)
        try:
            _, answer, is_fenced = await self._scripts.run(
                command(b"SADD", owned_key(self._prefix, owner), holding.element()),
                call,
                command(b"EXISTS", claim_key(self._prefix, owner)),
            )
            if is_fenced:
                raise BrokerUnavailable("fenced meanwhile")
        except BaseException:
            if not was_held:
                holdings.all.discard(holding)
            if not was_held or owner != self._lease.owner:
                self._reconciler.schedule_cleanup(owner, holding)
            raise
        return answer

    def _drop(self, holdings: Holdings, owner: str, holding: OwnedItem) -> None:
        """Remove a holding that was released or not granted from the local holdings and the index."""
        holdings.all.discard(holding)
        self._owned_index.forget(owner, [holding])

    async def _give_back(self, serial: int, holding: OwnedItem) -> bool:
        try:
            async with self._local_holdings.locked(serial) as holdings:
                owner = self._lease.owner
                (was_there,) = await self._owned_index.give_back(owner, [holding])
                self._drop(holdings, owner, holding)
                return was_there
        except ConnectionClosed:
            return False  # `disowned` has released everything
