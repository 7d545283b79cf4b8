"""What nodes know together about who is where. `gateway.redis.directory` fulfils it; one contract suite proves it.

Everything that stands here has an *owner*: a connection of a node, under the node's present incarnation.

Rules:
- A node's lease (8 s, renewed every 2 s, Redis time) stands for all that its connections own: nothing is renewed
  per client. An expired lease is simply renewed under the same incarnation; only a reaper's claim fences. A
  fenced node takes a new incarnation and asserts its local members again.
- The owner's index is written before the state, the state is deleted before the index; they lie in different
  slots, so a write that comes late is checked against the lease afterwards and undone.
- `joined` and `left` are published by the script that changes the count, on the roster's own channel: their
  order is the truth, and each comes once, whatever dies.
- What cannot be done because Redis does not answer, or because this node could not renew its lease for
  8 s, raises BrokerUnavailable. Nothing is left behind that a reaper would not find.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Asserter", "Census", "Directory", "Entered", "Member", "Owner"]


@dataclass(frozen=True, slots=True)
class Owner:
    """A connection's place in the cluster. Written NODE:INCARNATION:SERIAL."""

    node_id: str
    incarnation: str
    serial: int

    def __str__(self) -> str:
        return f"{self.node_id}:{self.incarnation}:{self.serial}"

    @classmethod
    def parse(cls, text: str) -> "Owner":
        """Read what `str` wrote. Raises ValueError."""
        node_id, incarnation, serial = text.rsplit(":", 2)
        return cls(node_id, incarnation, int(serial))

    @property
    def connection_id(self) -> str:
        """As `Connection.id` has it."""
        return f"{self.node_id}.{self.serial}"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a roster. entry: tells several of one connection apart ("" if it has one). data: any JSON entity."""

    identity: str
    owner: Owner
    entry: str = ""
    data: Any = None


@dataclass(frozen=True, slots=True)
class Entered:
    """What came of entering. is_first: of this identity, cluster-wide. members: all, itself included.

    version: see Census.
    """

    is_first: bool
    members: Sequence[Member]
    version: int


@dataclass(frozen=True, slots=True)
class Census:
    """A roster at one moment. version: a number that grows with each notice of it, also over times when it is empty.

    run: of the server that told it, another one after every start of it; empty = not known.
    """

    version: int
    members: Sequence[Member]
    run: str = ""


class Asserter(Protocol):
    """Who knows the truth about the local connections, and speaks for the services: the node."""

    def local_members(self) -> Iterable[tuple[str, Member]]:
        """All that local connections are in, as (roster key, member), to be asserted again."""

    def local_names(self) -> Iterable[tuple[str, str, int, str | None]]:
        """All names that local connections hold, as (names key, name, serial, identity)."""

    def notice(self, roster: str, member: Member, *, has_joined: bool, is_identity: bool) -> bytes | None:
        """Make the publication for a roster's channel: a member has come or gone; None = nothing is told.

        is_identity: it was its identity's first or last entry. Asked for members of dead nodes too, so it must
        need no state of the connection. Made by `publication.write_change`: the directory adds the versions.
        """

    def on_lost_name(self, names: str, name: str, serial: int) -> None:
        """Know that a name went to somebody else while this node was away: the connection is closed with 4010."""

    def on_direct(self, serial: int, message: bytes) -> bool:
        """Hand a direct message (an encoded envelope, JSON) to a local connection; False = it has gone."""


class Directory(Protocol):
    """Rosters, names, direct messages and tokens of the cluster. Keys are made by `codec.channel_key`."""

    @property
    def incarnation(self) -> str:
        """This node's present one."""

    def is_sure(self, names: str) -> bool:
        """True while the names of a service that local connections hold are theirs. False: others may have taken this
        node for dead, or Redis may have lost its state, and a name may be somebody else's by now."""

    async def start(self, asserter: Asserter) -> None:
        """Take the lease and begin to renew, look for dead nodes and receive; returns at once."""

    async def stop(self) -> None:
        """Give up the lease: what local connections own should have been given back before. Idempotent."""

    async def enter(self, roster: str, serial: int, identity: str, *, entry: str = "", data: Any = None) -> Entered:
        """Enter a roster; publishes the notices. Idempotent for the same owner and entry (data is replaced).

        Raises BrokerUnavailable; LimitExceeded: the roster would be too large, and nothing was done.
        """

    async def update(
        self, roster: str, serial: int, *, entry: str = "", data: Any, notice: bytes | None = None
    ) -> bool:
        """Replace an entry's data and publish the notice, as of `Asserter.notice`; False = there is no such entry.

        Raises as `enter`.
        """

    async def leave(self, roster: str, serial: int, *, entry: str = "") -> bool:
        """Leave a roster; publishes the notices. False = it was not there."""

    async def members(self, roster: str) -> list[Member]:
        """List a roster, in the order of identity, owner and entry."""

    async def census(self, roster: str) -> Census:
        """List it with its version: what notices up to that version tell is in it, and what later ones tell is not."""

    async def listed(self, roster: str) -> Census:
        """List it with its version, as it is now or later, for all that ask at this time: they share the members."""

    async def versions(self, rosters: Sequence[str]) -> list[int | None]:
        """Tell the version of each, cheaply; 0 = there is none, None = not known now. Raises BrokerUnavailable."""

    async def claim(self, names: str, name: str, serial: int, identity: str | None = None) -> bool:
        """Claim a name, unique in the cluster. False = somebody else has it.

        A connection with an identity takes over what the same identity holds; who held it is told.
        """

    async def release(self, names: str, name: str, serial: int) -> bool:
        """Give a name back. False = it was not this connection's."""

    async def find(self, names: str, name: str) -> Owner | None:
        """Tell who holds a name."""

    async def list_names(self, names: str) -> list[str]:
        """List all names that are held, in no order. Raises BrokerUnavailable, LimitExceeded: they are too many."""

    async def disowned(self, serial: int) -> None:
        """Give back everything that a connection owns; publishes the notices. For when it has gone."""

    async def send(self, owner: Owner, message: bytes) -> bool:
        """Send one message (an encoded envelope, JSON) to a connection on any node; in order, once.

        True when its node has taken it for the connection, False when the connection has gone. Raises
        BrokerUnavailable: no answer in time, it is not known.
        """

    async def put_token(self, value: Any, ttl_s: float) -> str:
        """Keep a value under a new token of 32 characters, unguessable. value: any JSON entity."""

    async def take_token(self, token: str, taker: str) -> Any | None:
        """Take a token's value, once; None = there is no such token, it expired, or another taker has it.

        taker: unguessable ASCII without blanks. The same taker may take the token again for a minute: after
        BrokerUnavailable it is unknown whether the first call took it.
        """
