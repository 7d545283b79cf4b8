"""The interface to the cluster-wide directory: rosters, names, direct messages, tokens.

`snorky.gateway.redis.directory.directory` implements it; one test suite checks it. Every entry has an *owner*: a
connection of a node, under the node's present incarnation.

Rules:
- A node's lease (8 s, renewed every 2 s, Redis time) covers everything that its connections own: nothing is renewed
  per client. A node may renew an expired lease under the same incarnation, until a reaper of another node fences it. A
  fenced node takes a new incarnation and registers its local members again.
- The owner's index is written before the state, and the state is deleted before the index. They lie in different
  slots, so a late write is checked against the lease afterwards and undone.
- The script that changes a roster's count publishes `joined` and `left` on the roster's channel: their
  order is authoritative, and each is published exactly once, whichever node dies.
- If Redis does not respond, or this node could not renew its lease for 8 s, methods raise BrokerUnavailable.
  Whatever they leave behind, a reaper will find.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Directory", "Entered", "LocalState", "Member", "Owner", "RosterSize", "RosterSnapshot"]


@dataclass(frozen=True, slots=True)
class Owner:
    """A connection's address in the cluster. Written NODE:INCARNATION:SERIAL."""

    node_id: str
    incarnation: str
    serial: int

    def __str__(self) -> str:
        return f"{self.node_id}:{self.incarnation}:{self.serial}"

    @classmethod
    def parse(cls, text: str) -> "Owner":
        """Parse the result of `str`. Raises ValueError."""
        node_id, incarnation, serial = text.rsplit(":", 2)
        return cls(node_id, incarnation, int(serial))

    @property
    def connection_id(self) -> str:
        """The same connection as `Connection.id` formats it."""
        return f"{self.node_id}.{self.serial}"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a roster. entry: distinguishes entries of one connection, "" if only one. data: any JSON value."""

    identity: str
    owner: Owner
    entry: str = ""
    data: Any = None


@dataclass(frozen=True, slots=True)
class Entered:
    """Result of entering a roster. is_first: the identity's first entry, cluster-wide. members: all, including it.

    members is empty if they were not requested. version: see RosterSnapshot; without members, that of the roster when
    the entry was made.
    """

    is_first: bool
    members: Sequence[Member]
    version: int


@dataclass(frozen=True, slots=True)
class RosterSize:
    """How many entries and identities a roster has."""

    entries: int
    identities: int


@dataclass(frozen=True, slots=True)
class RosterSnapshot:
    """A roster at one moment. version: grows with each of its notices, and is not reset when the roster is empty.

    run: identifies the run of the Redis server, and changes at each of its starts; empty = not known.
    """

    version: int
    members: Sequence[Member]
    run: str = ""


class LocalState(Protocol):
    """The state of the local connections and the notices of services, for the directory. The node implements it."""

    def local_members(self) -> Iterable[tuple[str, Member]]:
        """Return all roster entries of local connections, as (roster key, member), to be registered again."""

    def local_names(self) -> Iterable[tuple[str, str, int, str | None]]:
        """Return all names that local connections own, as (names key, name, serial, identity)."""

    def notice(self, roster: str, member: Member, *, has_joined: bool, is_identity: bool) -> bytes | None:
        """Make the publication for a roster's channel when a member joins or leaves; None = publish nothing.

        is_identity: this is the identity's first or last entry. Also called for members of dead nodes, so it must not
        need the connection's state. Built with `publication.write_change`: the directory adds the versions.
        """

    def on_lost_name(self, names: str, name: str, serial: int) -> None:
        """Another connection has taken this name over: close the local owner with 4010."""

    def on_direct(self, serial: int, message: bytes) -> bool:
        """Deliver a direct message (an encoded envelope, JSON) to a local connection; False = it has gone."""


class Directory(Protocol):
    """Rosters, names, direct messages and tokens of the cluster. Keys come from `codec.channel_key`."""

    @property
    def incarnation(self) -> str:
        """This node's present incarnation."""

    def is_sure(self, names: str) -> bool:
        """True while local connections surely own their names of a service. False: other nodes may have taken this
        node for dead, or Redis may have lost its state; another connection may own a name by now."""

    async def start(self, asserter: LocalState) -> None:
        """Take the lease; begin to renew it, to look for dead nodes and to receive. Returns at once."""

    async def stop(self) -> None:
        """Release the lease; the caller should first release what local connections own. Idempotent."""

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
        """Enter a roster and publish the notices. Idempotent for the same owner and entry (data is replaced).

        lists_members: read the roster afterwards; False: the cost does not depend on its size.
        Raises BrokerUnavailable; LimitExceeded: the roster would be too large; nothing was done.
        """

    async def update(
        self, roster: str, serial: int, *, entry: str = "", data: Any, notice: bytes | None = None
    ) -> bool:
        """Replace an entry's data and publish the notice (see `LocalState.notice`); False = there is no such entry.

        Raises as `enter`.
        """

    async def leave(self, roster: str, serial: int, *, entry: str = "") -> bool:
        """Leave a roster and publish the notices. False = there was no such entry."""

    async def members(self, roster: str) -> list[Member]:
        """List a roster, in the order of identity, owner and entry."""

    async def census(self, roster: str) -> RosterSnapshot:
        """List a roster with its version: it reflects all notices up to that version, and no later ones."""

    async def listed(self, roster: str) -> RosterSnapshot:
        """List a roster with its version, now or shortly later; concurrent callers share one result."""

    async def versions(self, rosters: Sequence[str]) -> list[int | None]:
        """Return each roster's version, cheaply; 0 = no roster, None = not known now. Raises BrokerUnavailable."""

    async def identity_counts(self, rosters: Sequence[str]) -> list[int]:
        """Count the identities in each roster, cheaply. Raises BrokerUnavailable."""

    async def size(self, roster: str) -> RosterSize:
        """Count a roster's entries and identities, at any size at the same cost. Raises BrokerUnavailable."""

    async def claim(self, names: str, name: str, serial: int, identity: str | None = None) -> bool:
        """Register a name, unique in the cluster. False = another connection owns it.

        A connection with an identity takes over a name that the same identity owns; the previous owner is notified.
        """

    async def release(self, names: str, name: str, serial: int) -> bool:
        """Release a name. False = this connection did not own it."""

    async def find(self, names: str, name: str) -> Owner | None:
        """Return the owner of a name, None = it is free."""

    async def list_names(self, names: str) -> list[str]:
        """List all registered names, in no order. Raises BrokerUnavailable, LimitExceeded: too many names."""

    async def disowned(self, serial: int) -> None:
        """Release everything that a closed connection owns, and publish the notices."""

    async def send(self, owner: Owner, message: bytes) -> bool:
        """Send one message (an encoded envelope, JSON) to a connection on any node; in order, at most once.

        True when the connection's node has accepted it, False when the connection has gone. Raises
        BrokerUnavailable: no answer in time, the outcome is not known.
        """

    async def put_token(self, value: Any, ttl_s: float) -> str:
        """Store a value under a new unguessable token of 32 characters. value: any JSON value."""

    async def read_token(self, token: str) -> Any | None:
        """Return a token's value and leave it there; None = there is no such token, it expired, or it was taken."""

    async def take_token(self, token: str, taker: str) -> Any | None:
        """Return a token's value, once; None = there is no such token, it expired, or another taker has it.

        taker: unguessable ASCII without blanks. The same taker may take the token again for a minute: after
        BrokerUnavailable it is unknown whether the first call took it.
        """
