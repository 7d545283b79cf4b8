"""What a service may ask of the cluster: rosters, names, direct messages and tokens; topics are in `gateway.topics`.

Everything that is true on more than one node is one of these; a service is a few lines on top of them and
scales by using them. Each handle belongs to one service: two services never see each other's channels or names.

What a connection owns (roster entries, names) is given back when it ends, however it ends.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, Protocol

from gateway.authenticator import Authenticator
from gateway.codec import channel_key, channel_name, encode_json, json_size
from gateway.compound import Shared
from gateway.connection import Connection
from gateway.directory import Census, Entered, Member, Owner
from gateway.errors import InvalidMessage
from gateway.fanout import Listener, OnGap
from gateway.history import History, Keeper, Recovery
from gateway.metrics import Metrics
from gateway.ownership import Ownership
from gateway.publication import Position, Selector
from gateway.quotas import ENTRY_BYTES, Charge, Quotas, was_stored

__all__ = ["Cluster", "Direct", "GapNotice", "LooksLikeReply", "Names", "Notification", "Rosters", "Tokens", "is_reply"]

Notification = Callable[[Any], Any]  # channel -> what its subscribers receive, with PAYLOAD where the payload stands
GapNotice = Callable[[Any, Position], Any]  # channel, where it goes on -> what who asked to recover is told


class LooksLikeReply(InvalidMessage):
    """A message to be relayed as it is, which clients would take for a reply to a call of theirs."""

    def __init__(self) -> None:
        super().__init__('A message to others must not have the "type" of a reply, "response" or "error"')


def is_reply(message: Any) -> bool:
    """Tell whether clients take a message for a reply to a call (PROTOCOL "RPC services")."""
    return isinstance(message, dict) and message.get("type") in ("response", "error")


class Cluster(Protocol):
    """What the nodes do together, as a service sees it. `gateway.node.Node` fulfils it."""

    @property
    def node_id(self) -> str:
        """This node's name in the cluster."""

    @property
    def metrics(self) -> Metrics:
        """Where to count."""

    @property
    def auth(self) -> Authenticator:
        """Who the connections of this node are, and what is revoked in the cluster."""

    def publish(self, service: str, channel: Any, payload: Any, *, to: Selector | None = None) -> asyncio.Future[int]:
        """Publish to all subscribers of a service's channel, on all nodes. See Topics.publish."""

    def publish_kept(
        self, service: str, channel: Any, payload: Any, history: History, *, once: str | None = None
    ) -> asyncio.Future[Position]:
        """Publish, and keep it. See Topics.publish."""

    def publish_once(self, service: str, channel: Any, payload: Any, once: str) -> asyncio.Future[None]:
        """Publish once under an idempotency key, and keep nothing. See Topics.publish."""

    async def subscribe(
        self,
        connection: Connection,
        service: str,
        channel: Any,
        notification: Notification,
        *,
        is_held: bool = False,
        is_kept: bool = False,
    ) -> None:
        """Subscribe a connection of this node. See Topics.subscribe. is_held: see Topics.joining.

        is_kept: the channel keeps a history; what this node misses is read from there.
        """

    async def recover(
        self,
        connection: Connection,
        service: str,
        channel: Any,
        notification: Notification,
        gap_notice: GapNotice,
        *,
        since: Position | None,
    ) -> Recovery:
        """Subscribe a connection, and tell what it missed. See Topics.recover."""

    def hold(self, connection: Connection, service: str, channel: Any) -> bool:
        """Keep what comes for a subscriber until `release`. False = there is nothing to hold."""

    def knows(self, connection: Connection, service: str, channel: Any, version: int) -> None:
        """Note which list a subscriber is told. See Topics.knows."""

    def release(self, connection: Connection, service: str, channel: Any) -> None:
        """Write what was held for a connection, and hold no more."""

    def unsubscribe(self, connection: Connection, service: str, channel: Any) -> None:
        """Undo it. See Topics.unsubscribe."""

    def is_subscribed(self, connection: Connection, service: str, channel: Any) -> bool:
        """True if it is subscribed, or about to be."""

    async def listen(
        self, service: str, channel: Any, listener: Listener, *, is_kept: bool = False, on_gap: OnGap | None = None
    ) -> None:
        """Hear a channel on this node itself. See Topics.listen."""

    def unlisten(self, service: str, channel: Any) -> None:
        """Undo it. See Topics.unlisten."""

    @property
    def quotas(self) -> Quotas:
        """How much clients may store in Redis."""

    @property
    def ownership(self) -> Ownership:
        """What connections of this node own in the cluster."""

    @property
    def keeper(self) -> Keeper:
        """What channels keep."""

    def promised(self, service: str, channel: Any, own: History | None) -> History | None:
        """Tell what a channel keeps. See Topics.promised."""

    def find_service(self, name: str) -> object:
        """Find a service of this node by its name, public or private; None = there is none."""


class Rosters:
    """Who is in which channel of one service, cluster-wide. Notices are what `Service.roster_notice` says."""

    __slots__ = ("_cluster", "_service")

    def __init__(self, cluster: Cluster, service: str) -> None:
        self._cluster = cluster
        self._service = service

    async def enter(self, connection: Connection, channel: Any, *, entry: str = "", data: Any = None) -> Entered:
        """Enter a channel's roster under the connection's identity (its id, if it has none).

        entry: tells several of one connection apart. Idempotent; data is replaced. Raises BrokerUnavailable,
        InvalidChannel, ConnectionClosed, LimitExceeded.
        """
        size = ENTRY_BYTES + (0 if data is None else json_size(data))
        charge: Charge = self._cluster.quotas.charge(connection, size)
        try:
            return await self._cluster.ownership.enter(connection, self._key(channel), entry=entry, data=data)
        except Exception as error:
            if not was_stored(error):
                charge.give_back()
            raise

    async def update(
        self, connection: Connection, channel: Any, *, entry: str = "", data: Any, notice: tuple[Any, Selector] | None
    ) -> bool:
        """Replace an entry's data and publish the notice with it. False = there is no such entry."""
        key = self._key(channel)
        return await self._cluster.ownership.update(connection, key, entry=entry, data=data, notice=notice)

    async def leave(self, connection: Connection, channel: Any, *, entry: str = "") -> bool:
        """Leave. False = it was not there. Raises BrokerUnavailable: it will be done as soon as it can."""
        return await self._cluster.ownership.leave(connection, self._key(channel), entry=entry)

    async def members(self, channel: Any) -> list[Member]:
        """List a roster, in the order of identity, owner and entry."""
        return await self._cluster.ownership.directory.members(self._key(channel))

    async def census(self, channel: Any) -> Census:
        """List it with its version, for `Topics.knows`. Its members are shared with others: not to be changed."""
        return await self._cluster.ownership.directory.listed(self._key(channel))

    def _key(self, channel: Any) -> str:
        return channel_key(self._service, channel)


class Names:
    """Names of one service, any JSON entity, each held by at most one connection of the cluster."""

    __slots__ = ("_cluster", "_service")

    def __init__(self, cluster: Cluster, service: str) -> None:
        self._cluster = cluster
        self._service = service

    async def claim(self, connection: Connection, name: Any) -> bool:
        """Claim a name. False = somebody else has it. What the connection's own identity holds is taken over.

        Raises BrokerUnavailable, InvalidChannel (no canonical form), ConnectionClosed, LimitExceeded.
        """
        charge, is_stored = self._cluster.quotas.charge(connection, ENTRY_BYTES), True
        try:
            is_stored = await self._cluster.ownership.claim(connection, self._service, channel_name(name))
        except Exception as error:
            is_stored = was_stored(error)
            raise
        finally:
            if not is_stored:
                charge.give_back()
        return is_stored

    async def release(self, connection: Connection, name: Any) -> bool:
        """Give a name back. False = it was not this connection's."""
        return await self._cluster.ownership.release(connection, self._service, channel_name(name))

    async def find(self, name: Any) -> Owner | None:
        """Tell who holds a name."""
        return await self._cluster.ownership.directory.find(self._service, channel_name(name))

    async def list(self) -> list[Any]:
        """List all names, in the order of their canonical forms. Raises BrokerUnavailable, LimitExceeded."""
        names: list[Any] = (await self.listed()).value  # type: ignore[assignment]  # a list by making
        return [*names]

    async def listed(self) -> Shared:
        """List them in one entity for all that ask at this time, to be put into replies. Not to be changed."""
        return await self._cluster.ownership.lists_of_names.get(self._service)

    def is_held(self, connection: Connection, name: Any) -> bool:
        """True if a connection of this node holds a name, or is about to; asks nobody.

        Raises InvalidChannel; BrokerUnavailable: this node was away, and the name may be somebody else's by now.
        """
        return self._cluster.ownership.holds(connection, self._service, channel_name(name))

    def count(self, connection: Connection) -> int:
        """Tell how many names a connection of this node holds; asks nobody."""
        return sum(service == self._service for service, _ in self._cluster.ownership.names_of(connection))


class Direct:
    """Messages of one service to one connection, wherever it is."""

    __slots__ = ("_cluster", "_service")

    def __init__(self, cluster: Cluster, service: str) -> None:
        self._cluster = cluster
        self._service = service

    async def send(self, owner: Owner, message: Any) -> bool:
        """Send one message. True when its node has taken it, False when the connection has gone.

        Raises BrokerUnavailable: not known. InvalidMessage: no JSON entity, or one that looks like a reply.
        """
        if is_reply(message):
            raise LooksLikeReply
        envelope = encode_json({"service": self._service, "message": message})
        return await self._cluster.ownership.directory.send(owner, envelope)


class Tokens:
    """Values under tokens, that any node may take, once."""

    __slots__ = ("_cluster",)

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def put(self, value: Any, *, ttl_s: float) -> str:
        """Keep a JSON entity; returns a token of 32 characters, unguessable."""
        return await self._cluster.ownership.directory.put_token(value, ttl_s)

    async def take(self, token: str, *, taker: str | None = None) -> Any | None:
        """Take the value, once; None = no such token, it expired, or another taker has it.

        taker: unguessable ASCII without blanks (`secrets.token_hex()`), needed by callers that retry. After
        BrokerUnavailable it is unknown whether the token was taken; a call with the same taker gets the value all the
        same, for a minute.
        """
        return await self._cluster.ownership.directory.take_token(token, taker or secrets.token_hex())
