"""The cluster-wide primitives for services: rosters, names, direct messages, tokens.

Topics are in `snorky.gateway.sdk.topics`.

All state that spans nodes is in one of these. So a service is a few lines on top of them, and it
works on any number of nodes. Each handle belongs to one service: services cannot see each other's channels or names.

When a connection ends, for whatever reason, what it owns (roster entries, names) is released.
"""

import secrets
from collections.abc import Sequence
from typing import Any, Protocol

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.storage_quotas import ENTRY_BYTES, Charge, Quotas, was_stored
from snorky.gateway.contracts.directory import Entered, Member, Owner, RosterSize, RosterSnapshot
from snorky.gateway.contracts.hooks import Hooks
from snorky.gateway.errors import InvalidMessage
from snorky.gateway.metrics import Metrics
from snorky.gateway.presence.cluster_limiter import ClusterLimiter
from snorky.gateway.presence.ownership import Ownership
from snorky.gateway.protocol.codec import channel_key, channel_name, encode_json, json_size
from snorky.gateway.protocol.publication import Selector
from snorky.gateway.protocol.splicing import Shared
from snorky.gateway.sdk.control import Control
from snorky.gateway.sdk.service_channels import ServiceChannels

__all__ = [
    "Direct",
    "LooksLikeReply",
    "Names",
    "NodeServices",
    "Rosters",
    "Tokens",
    "is_reply",
]


class LooksLikeReply(InvalidMessage):
    """A message to be relayed unchanged that clients would mistake for a reply to one of their calls."""

    def __init__(self) -> None:
        super().__init__('A message to others must not have the "type" of a reply, "response" or "error"')


def is_reply(message: Any) -> bool:
    """Return True if clients interpret a message as a reply to a call (PROTOCOL "RPC services")."""
    return isinstance(message, dict) and message.get("type") in ("response", "error")


class NodeServices(Protocol):
    """The cluster, as a service sees it. `snorky.gateway.node.Node` implements it."""

    @property
    def node_id(self) -> str:
        """This node's id in the cluster."""

    @property
    def metrics(self) -> Metrics:
        """The metrics of this node."""

    @property
    def auth(self) -> Authenticator:
        """Identities of this node's connections, and revocations in the cluster."""

    @property
    def hooks(self) -> Hooks | None:
        """The HTTP hooks of this node; None = the backend is not asked."""

    @property
    def control(self) -> Control:
        """Orders to all nodes about their clients."""

    @property
    def channels(self) -> ServiceChannels:
        """The channels of this node's services."""

    @property
    def quotas(self) -> Quotas:
        """Limits of what clients may store in Redis."""

    @property
    def cluster_limits(self) -> ClusterLimiter:
        """Limits over all nodes."""

    @property
    def ownership(self) -> Ownership:
        """The owner of this node's roster entries and names."""

    def find_service(self, name: str) -> object:
        """Return a service of this node by its name, public or private; None = there is none."""


class Rosters:
    """The members of each channel of one service, cluster-wide. `Service.roster_notice` defines the notices."""

    __slots__ = ("_cluster", "_service")

    def __init__(self, cluster: NodeServices, service: str) -> None:
        self._cluster = cluster
        self._service = service

    async def enter(
        self,
        connection: Connection,
        channel: Any,
        *,
        entry: str = "",
        data: Any = None,
        identity: str | None = None,
        lists_members: bool = True,
    ) -> Entered:
        """Enter a channel's roster under the connection's identity, or its id if it has no identity.

        identity: another one, which the caller has verified. entry: distinguishes entries of one connection.
        lists_members: return all members; False: the cost does not depend on their number.
        Idempotent; data is replaced. Raises BrokerUnavailable, InvalidChannel, ConnectionClosed, LimitExceeded.
        """
        size = ENTRY_BYTES + (0 if data is None else json_size(data))
        charge: Charge = self._cluster.quotas.charge(connection, size)
        try:
            key = self._key(channel)
            return await self._cluster.ownership.enter(
                connection, key, entry=entry, data=data, identity=identity, lists_members=lists_members
            )
        except Exception as error:
            if not was_stored(error):
                charge.give_back()
            raise

    async def update(
        self, connection: Connection, channel: Any, *, entry: str = "", data: Any, notice: tuple[Any, Selector] | None
    ) -> bool:
        """Replace an entry's data and publish the notice. False = there is no such entry."""
        key = self._key(channel)
        return await self._cluster.ownership.update(connection, key, entry=entry, data=data, notice=notice)

    async def leave(self, connection: Connection, channel: Any, *, entry: str = "") -> bool:
        """Leave a roster. False = there was no such entry. Raises BrokerUnavailable: the node keeps retrying."""
        return await self._cluster.ownership.leave(connection, self._key(channel), entry=entry)

    def leave_soon(self, connection: Connection, channel: Any) -> None:
        """Leave a roster with all entries of a connection. Returns at once; the node retries until Redis has it."""
        self._cluster.ownership.leave_soon(connection, self._key(channel))

    async def members(self, channel: Any) -> list[Member]:
        """List a roster, in the order of identity, owner and entry."""
        return await self._cluster.ownership.directory.members(self._key(channel))

    async def census(self, channel: Any) -> RosterSnapshot:
        """List a roster with its version, for `Topics.knows`. The list is shared: callers must not change it."""
        return await self._cluster.ownership.directory.listed(self._key(channel))

    async def size(self, channel: Any) -> RosterSize:
        """Count entries and identities of a roster, without reading it. Raises BrokerUnavailable, InvalidChannel."""
        return await self._cluster.ownership.directory.size(self._key(channel))

    async def count_identities(self, channels: Sequence[Any]) -> list[int]:
        """Count the identities on each roster, without reading it. Raises BrokerUnavailable, InvalidChannel."""
        return await self._cluster.ownership.directory.identity_counts([self._key(each) for each in channels])

    def _key(self, channel: Any) -> str:
        return channel_key(self._service, channel)


class Names:
    """Names of one service: any JSON value, each owned by at most one connection of the cluster."""

    __slots__ = ("_cluster", "_service")

    def __init__(self, cluster: NodeServices, service: str) -> None:
        self._cluster = cluster
        self._service = service

    async def claim(self, connection: Connection, name: Any) -> bool:
        """Register a name. False = another connection owns it. One of the same identity loses it to this connection.

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
        """Release a name. False = this connection did not own it."""
        return await self._cluster.ownership.release(connection, self._service, channel_name(name))

    async def find(self, name: Any) -> Owner | None:
        """Return the owner of a name, None = it is free."""
        return await self._cluster.ownership.directory.find(self._service, channel_name(name))

    async def list(self) -> list[Any]:
        """List all names, in the order of their canonical forms. Raises BrokerUnavailable, LimitExceeded."""
        names: list[Any] = (await self.listed()).value  # type: ignore[assignment]  # `_list_names` made a list
        return [*names]

    async def listed(self) -> Shared:
        """List all names as one value for replies, shared by concurrent callers: they must not change it."""
        return await self._cluster.ownership.lists_of_names.get(self._service)

    def is_held(self, connection: Connection, name: Any) -> bool:
        """True if a connection of this node owns a name, or is acquiring it; answered locally.

        Raises InvalidChannel; BrokerUnavailable: this node was disconnected, another connection may own the name now.
        """
        return self._cluster.ownership.holds(connection, self._service, channel_name(name))

    def count(self, connection: Connection) -> int:
        """Return the number of names that a connection of this node owns; answered locally."""
        return sum(service == self._service for service, _ in self._cluster.ownership.names_of(connection))


class Direct:
    """Messages of one service to one connection, on any node."""

    __slots__ = ("_cluster", "_service")

    def __init__(self, cluster: NodeServices, service: str) -> None:
        self._cluster = cluster
        self._service = service

    async def send(self, owner: Owner, message: Any) -> bool:
        """Send one message. True when the connection's node has accepted it, False when the connection has gone.

        Raises BrokerUnavailable: the outcome is not known. InvalidMessage: not a JSON value, or it looks like a reply.
        """
        if is_reply(message):
            raise LooksLikeReply
        envelope = encode_json({"service": self._service, "message": message})
        return await self._cluster.ownership.directory.send(owner, envelope)


class Tokens:
    """Values stored under tokens; a client of any node may take each once."""

    __slots__ = ("_cluster",)

    def __init__(self, cluster: NodeServices) -> None:
        self._cluster = cluster

    async def put(self, value: Any, *, ttl_s: float) -> str:
        """Store a JSON value; returns an unguessable token of 32 characters."""
        return await self._cluster.ownership.directory.put_token(value, ttl_s)

    async def read(self, token: str) -> Any | None:
        """Return a token's value and leave it there; None = no such token, it expired, or it was taken."""
        return await self._cluster.ownership.directory.read_token(token)

    async def take(self, token: str, *, taker: str | None = None) -> Any | None:
        """Return a token's value, once; None = no such token, it expired, or another taker has it.

        taker: unguessable ASCII without blanks (`secrets.token_hex()`), needed by callers that retry. After
        BrokerUnavailable it is unknown whether the token was taken; for a minute, a call with the same taker still
        returns the value.
        """
        return await self._cluster.ownership.directory.take_token(token, taker or secrets.token_hex())
