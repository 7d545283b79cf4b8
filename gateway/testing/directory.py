"""A Directory within one process, for tests of the layers above it. Passes the contract suite; no network, no time.

    cluster = SharedDirectory(on_publish)           # on_publish(roster key, publication): pass it to the brokers
    a, b = MemoryDirectory(cluster, "a"), MemoryDirectory(cluster, "b")
    await a.start(node_a); await b.start(node_b)

Scriptable: `cluster.is_failing` (every call raises BrokerUnavailable), `cluster.roster_max_bytes` (of one roster),
`directory.die()` (the node is gone; the others clean up), `directory.fence()` (cleaned up while away, then back),
`directory.is_doubtful` (its lease may have expired), `cluster.flush()` (all state lost, registered again).
"""

import asyncio
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from snorky.gateway.contracts.directory import Entered, LocalState, Member, Owner, RosterSize, RosterSnapshot
from snorky.gateway.errors import BrokerUnavailable, LimitExceeded
from snorky.gateway.protocol.codec import decode_json, encode_json
from snorky.gateway.protocol.publication import write_version

__all__ = ["LateDirectory", "MemoryDirectory", "SharedDirectory"]

_Place = tuple[Owner, str]  # owner, entry


@dataclass
class _Roster:
    members: dict[_Place, Member] = field(default_factory=dict)

    def count(self, identity: str) -> int:
        return sum(member.identity == identity for member in self.members.values())


class SharedDirectory:
    """State that directories share. on_publish: called with every notice; `published` records them all."""

    def __init__(self, on_publish: Callable[[str, bytes], object] | None = None) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.version = 0  # of the last notice of all rosters
        self.versions: dict[str, int] = {}  # of each roster
        self.is_failing = False
        self.roster_max_bytes = 0  # of one; 0: unlimited
        self.is_losing_answers = False  # registrations take effect, but the caller gets BrokerUnavailable
        self.rosters: dict[str, _Roster] = {}
        self.names: dict[str, dict[str, tuple[Owner, str | None]]] = {}
        self.tokens: dict[str, tuple[float, bytes]] = {}
        self.takers: dict[str, tuple[str, bytes]] = {}
        self.nodes: dict[str, MemoryDirectory] = {}
        self._on_publish = on_publish

    def weigh(self, roster: str, member: Member) -> None:
        """Refuse a member, or its data, that would make a roster too large. Raises LimitExceeded."""
        members = dict(self.rosters.get(roster, _Roster()).members)
        before = _size(members.values())
        members[member.owner, member.entry] = member
        if self.roster_max_bytes and before < _size(members.values()) > self.roster_max_bytes:
            text = f"Full: its members and their data take {self.roster_max_bytes} bytes already"
            raise LimitExceeded("roster_max_bytes", text)

    def publish(self, roster: str, notice: bytes | None) -> None:
        """Publish on a roster's channel."""
        if notice is None:
            return
        self.published.append((roster, notice))
        if self._on_publish is not None:
            self._on_publish(roster, notice)

    def publish_change(self, roster: str, notice: bytes | None) -> None:
        """Publish a change's notice, prefixed with its version and the one before; None: a change without a notice."""
        self.version += 1
        previous, self.versions[roster] = self.versions.get(roster, 0), self.version
        if roster not in self.rosters:
            del self.versions[roster]
        if notice is not None:
            self.publish(roster, write_version(notice, self.version, previous))

    def flush(self) -> None:
        """Lose everything; the nodes register their entries again, without notices."""
        self.versions.clear()
        self.rosters.clear()
        self.names.clear()
        self.tokens.clear()
        self.takers.clear()
        for node in list(self.nodes.values()):
            node.assert_all(is_quiet=True)

    def enter(self, roster: str, member: Member, asserter: LocalState, *, is_quiet: bool = False) -> bool:
        """Add a member; True if it is its identity's first."""
        members = self.rosters.setdefault(roster, _Roster()).members
        place = (member.owner, member.entry)
        before = members.get(place)
        if before is not None and before.identity != member.identity:
            self.leave(roster, place, asserter)
            before = None
        self.rosters.setdefault(roster, _Roster()).members[place] = member
        if before is not None:
            return False
        is_first = self.rosters[roster].count(member.identity) == 1
        notice = asserter.notice(roster, member, has_joined=True, is_identity=is_first)
        if is_quiet or notice is not None:
            self.publish_change(roster, None if is_quiet else notice)
        return is_first

    def leave(self, roster: str, place: _Place, asserter: LocalState) -> bool:
        """Remove a member; False = it was not there."""
        found = self.rosters.get(roster, _Roster())
        member = found.members.pop(place, None)
        if member is None:
            return False
        is_last = found.count(member.identity) == 0
        if not found.members:
            del self.rosters[roster]
        notice = asserter.notice(roster, member, has_joined=False, is_identity=is_last)
        if notice is not None:
            self.publish_change(roster, notice)
        return True

    def give_back(self, is_theirs: Callable[[Owner], bool], asserter: LocalState) -> None:
        """Remove all entries of some owners."""
        for key, roster in list(self.rosters.items()):
            for place in [place for place in roster.members if is_theirs(place[0])]:
                self.leave(key, place, asserter)
        for names in self.names.values():
            for name in [name for name, (owner, _) in names.items() if is_theirs(owner)]:
                del names[name]


class MemoryDirectory:
    """One node's view. node_id: unique in the cluster."""

    def __init__(self, cluster: SharedDirectory, node_id: str) -> None:
        self._cluster = cluster
        self._node_id = node_id
        self._incarnation = secrets.token_hex(6)
        self._asserter: LocalState | None = None
        self.is_doubtful = False

    @property
    def incarnation(self) -> str:
        return self._incarnation

    def is_sure(self, names: str) -> bool:
        return not self.is_doubtful

    async def start(self, asserter: LocalState) -> None:
        self._asserter = asserter
        self._cluster.nodes[self._node_id] = self

    async def stop(self) -> None:
        if self._cluster.nodes.get(self._node_id) is self:
            self.die()

    def die(self) -> None:
        """End as a killed node does; another node, if there is one, cleans up."""
        del self._cluster.nodes[self._node_id]
        asserter = next((node._present for node in self._cluster.nodes.values()), self._present)
        self._cluster.give_back(lambda owner: owner.node_id == self._node_id, asserter)

    def fence(self) -> None:
        """Be cleaned up while away, return with a new incarnation and register all again, with `joined`."""
        self._cluster.give_back(lambda owner: owner.node_id == self._node_id, self._present)
        self._incarnation = secrets.token_hex(6)
        self.assert_all(is_quiet=False)

    def assert_all(self, *, is_quiet: bool) -> None:
        """Enter and claim again the entries of local connections; connections that lost a name are notified."""
        for roster, member in list(self._present.local_members()):
            owner = self._owner(member.owner.serial)
            renewed = Member(member.identity, owner, member.entry, member.data)
            self._cluster.enter(roster, renewed, self._present, is_quiet=is_quiet)
        for names, name, serial, identity in list(self._present.local_names()):
            held = self._cluster.names.setdefault(names, {})
            if name in held and held[name][0].connection_id != self._owner(serial).connection_id:
                self._present.on_lost_name(names, name, serial)
            else:
                held[name] = (self._owner(serial), identity)

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
        await self._travel()
        member = Member(identity, self._owner(serial), entry, _copy(data))
        self._cluster.weigh(roster, member)
        is_first = self._cluster.enter(roster, member, self._present)
        version = self._cluster.versions.get(roster, self._cluster.version)
        return Entered(is_first, _listed(self._members(roster)) if lists_members else [], version)

    async def update(
        self, roster: str, serial: int, *, entry: str = "", data: Any, notice: bytes | None = None
    ) -> bool:
        await self._travel()
        members = self._members(roster)
        place = (self._owner(serial), entry)
        if place not in members:
            return False
        member = Member(members[place].identity, place[0], entry, _copy(data))
        self._cluster.weigh(roster, member)
        members[place] = member
        if notice is not None:
            self._cluster.publish_change(roster, notice)
        return True

    async def leave(self, roster: str, serial: int, *, entry: str = "") -> bool:
        await self._travel()
        return self._cluster.leave(roster, (self._owner(serial), entry), self._present)

    async def members(self, roster: str) -> list[Member]:
        await self._travel()
        return _listed(self._members(roster))

    async def listed(self, roster: str) -> RosterSnapshot:
        return await self.census(roster)

    async def versions(self, rosters: Sequence[str]) -> list[int | None]:
        await self._travel()
        return [self._cluster.versions.get(roster, 0) for roster in rosters]

    async def identity_counts(self, rosters: Sequence[str]) -> list[int]:
        await self._travel()
        return [len({member.identity for member in self._members(roster).values()}) for roster in rosters]

    async def size(self, roster: str) -> RosterSize:
        await self._travel()
        members = self._members(roster).values()
        return RosterSize(len(members), len({member.identity for member in members}))

    async def census(self, roster: str) -> RosterSnapshot:
        await self._travel()
        return RosterSnapshot(self._cluster.versions.get(roster, self._cluster.version), _listed(self._members(roster)))

    async def claim(self, names: str, name: str, serial: int, identity: str | None = None) -> bool:
        await self._travel()
        held = self._cluster.names.setdefault(names, {})
        owner = self._owner(serial)
        before = held.get(name)
        if before is not None and before[0] != owner:
            if identity is None or before[1] != identity:
                return False
            loser = self._cluster.nodes.get(before[0].node_id)
            if loser is not None:
                loop = asyncio.get_running_loop()
                loop.call_soon(loser._present.on_lost_name, names, name, before[0].serial)
        held[name] = (owner, identity)
        return True

    async def release(self, names: str, name: str, serial: int) -> bool:
        await self._travel()
        held = self._cluster.names.get(names, {})
        if name not in held or held[name][0] != self._owner(serial):
            return False
        del held[name]
        return True

    async def find(self, names: str, name: str) -> Owner | None:
        await self._travel()
        found = self._cluster.names.get(names, {}).get(name)
        return None if found is None else found[0]

    async def list_names(self, names: str) -> list[str]:
        await self._travel()
        return list(self._cluster.names.get(names, {}))

    async def disowned(self, serial: int) -> None:
        await asyncio.sleep(0)  # a failed release is retried later: it never fails
        self._cluster.give_back(lambda owner: owner == self._owner(serial), self._present)

    async def send(self, owner: Owner, message: bytes) -> bool:
        await self._travel()
        node = self._cluster.nodes.get(owner.node_id)
        return node is not None and node._present.on_direct(owner.serial, message)

    async def put_token(self, value: Any, ttl_s: float) -> str:
        await self._travel()
        token = secrets.token_hex(16)
        self._cluster.tokens[token] = (asyncio.get_running_loop().time() + ttl_s, encode_json(value))
        return token

    async def read_token(self, token: str) -> Any | None:
        await self._travel()
        until, value = self._cluster.tokens.get(token, (0.0, b"null"))
        return decode_json(value) if asyncio.get_running_loop().time() < until else None

    async def take_token(self, token: str, taker: str) -> Any | None:
        await self._travel()
        until, value = self._cluster.tokens.pop(token, (0.0, b"null"))
        if asyncio.get_running_loop().time() < until:
            self._cluster.takers[token] = taker, value
        former, value = self._cluster.takers.get(token, ("", b"null"))
        if self._cluster.is_losing_answers:
            raise BrokerUnavailable("the answer was lost")
        return decode_json(value) if former == taker else None

    @property
    def _present(self) -> LocalState:
        if self._asserter is None:
            raise RuntimeError("the directory was not started")
        return self._asserter

    def _owner(self, serial: int) -> Owner:
        return Owner(self._node_id, self._incarnation, serial)

    def _members(self, roster: str) -> dict[_Place, Member]:
        return self._cluster.rosters.get(roster, _Roster()).members

    async def _travel(self) -> None:
        await asyncio.sleep(0)  # other tasks run meanwhile, as with Redis
        if self._cluster.is_failing or self._node_id not in self._cluster.nodes:
            raise BrokerUnavailable("memory")


class LateDirectory(MemoryDirectory):
    """A directory whose answers arrive up to `late` loop iterations after the publication of the change.

    In a real cluster the answer uses another connection, and other events may be handled before it is read.
    """

    def __init__(self, cluster: SharedDirectory, node_id: str, late: int, chance: random.Random) -> None:
        super().__init__(cluster, node_id)
        self._late = late
        self._chance = chance

    async def enter(self, *args: Any, **kwargs: Any) -> Entered:
        entered = await super().enter(*args, **kwargs)
        await self._dawdle()
        return entered

    async def members(self, roster: str) -> list[Member]:
        members = await super().members(roster)
        await self._dawdle()
        return members

    async def listed(self, roster: str) -> RosterSnapshot:
        census = await super().listed(roster)
        await self._dawdle()
        return census

    async def leave(self, *args: Any, **kwargs: Any) -> bool:
        has_left = await super().leave(*args, **kwargs)
        await self._dawdle()
        return has_left

    async def claim(self, *args: Any, **kwargs: Any) -> bool:
        has_it = await super().claim(*args, **kwargs)
        await self._dawdle()
        return has_it

    async def _dawdle(self) -> None:
        for _ in range(self._chance.randint(0, self._late)):
            await asyncio.sleep(0)


def _listed(members: dict[_Place, Member]) -> list[Member]:
    def place(each: Member) -> tuple[str, str, str, int, str]:
        return each.identity, each.owner.node_id, each.owner.incarnation, each.owner.serial, each.entry

    return sorted(members.values(), key=place)


def _size(members: Iterable[Member]) -> int:
    """Count bytes as the hash in Redis has them."""
    return sum(
        len(f"{each.owner} {each.entry}{len(each.identity.encode())}:{each.identity}".encode())
        + len(encode_json(each.data))
        for each in members
    )


def _copy(data: Any) -> Any:
    return decode_json(encode_json(data))
