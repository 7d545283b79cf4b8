"""Presence of pub/sub channels whose rule has it: a client enters the roster when it subscribes."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Any

from snorky.gateway import (
    AlreadySubscribed,
    BrokerUnavailable,
    Connection,
    Member,
    Rosters,
    Selector,
    SubscribeTerms,
    Topics,
    channel_name,
)
from snorky.services.pubsub.clients import clients, demand_few, members, stats
from snorky.services.pubsub.parameters import check_flag
from snorky.services.requests import check_allowed, demand_allowed
from snorky.services.rpc import Fitted, Request, RPCService, rpc_command

__all__ = ["PresenceCommands", "present"]


@asynccontextmanager
async def present(
    topics: Topics, rosters: Rosters, connection: Connection, channel: Any, terms: SubscribeTerms | None = None
) -> AsyncIterator[None]:
    """Enter a channel's roster; leave it again if the block, which subscribes, fails. Raises AlreadySubscribed.

    terms: of the client's frontend, with its entry; None = it has sent none.
    Entering comes first because no `await` is allowed between a recovery and its reply.
    """
    if topics.is_subscribed(connection, channel):
        raise AlreadySubscribed
    terms = terms or SubscribeTerms.of(connection.frontend, channel)
    entered = await rosters.enter(connection, channel, data=terms.data, identity=terms.member, lists_members=False)
    try:
        yield
        if not terms.lists_members:  # else the reply has a later list
            topics.knows(connection, channel, entered.version)  # `presence` may note a later version
    except BaseException:
        with suppress(BrokerUnavailable):  # then the node retries; report the first error
            await rosters.leave(connection, channel)
        raise


class PresenceCommands(RPCService):
    """The commands `presence` and `presenceStats`, and the notifications `joined` and `left`, of a PubSubService."""

    def roster_notice(
        self, channel: Any, member: Member, *, has_joined: bool, is_identity: bool
    ) -> tuple[Any, Selector] | None:
        """Build the `joined` or `left` notification to the other subscribers; None unless the rule has `join_leave`.

        Of an identity's further connections only clients of protocols that follow connections are notified.
        """
        if not self.rules.find(channel_name(channel)).join_leave:
            return None
        if not is_identity:
            return None, Selector.none()
        others = Selector(not_identity=member.identity, not_connection=member.owner.connection_id, is_whole=True)
        return {"type": "joined" if has_joined else "left", "channel": channel, "identity": member.identity}, others

    def sends_presence_events(self, channel: Any) -> bool:
        """Return whether the channel's rule has `join_leave`."""
        return self.rules.find(channel_name(channel)).join_leave

    @rpc_command
    async def presence(self, request: Request, channel: Any, connections: Any = False) -> Fitted:
        """Reply which identities subscribe to a channel, cluster-wide. connections: list their connections instead."""
        check_flag(connections)
        async with self.topics.reading(request.connection, channel):
            await self._demand_presence(request, channel)
            size = await self.rosters.size(channel)
            demand_few(size.entries if connections else size.identities)  # a list that no reply can have is not read
            census = await self.rosters.census(channel)
            has_data = request.connection.frontend is not None  # else its client would see the data
            found = clients(census.members, has_data=has_data) if connections else members(census.members)
            reply = self.fitted(request, found)
            self.topics.knows(request.connection, channel, census.version)
            return reply

    @rpc_command(name="presenceStats")
    async def presence_stats(self, request: Request, channel: Any) -> dict[str, Any]:
        """Reply how many identities and connections subscribe to a channel, cluster-wide."""
        await self._demand_presence(request, channel)
        return stats(await self.rosters.size(channel))

    def can_subscribe(self, request: Request, channel: Any) -> bool | Awaitable[bool]:
        """Return whether a client that the channel's rule permits may subscribe. Unless overridden, it may."""
        return True

    async def _demand_subscriber(self, request: Request, channel: Any) -> None:
        """Ask the hooks, that of the service and the backend's, unless the backend has subscribed the client itself.

        Raises RPCError, HookRefused, HookUnavailable.
        """
        if self.is_server_side(request.connection, channel):
            return
        await demand_allowed(self.can_subscribe(request, channel))
        await self.ask_backend("subscribe", request.connection, channel)

    async def ask_again(self, connection: Connection, channel: Any) -> None:
        """Ask the hooks whether a client may stay subscribed. Raises as `_demand_subscriber`."""
        request = Request(connection, self.name, "subscribe", None, perf_counter(), has_call_id=False)
        await demand_allowed(self.can_subscribe(request, channel))
        await super().ask_again(connection, channel)

    async def _demand_presence(self, request: Request, channel: Any) -> None:
        self.demand(request, "presence", channel)
        await self._demand_subscriber(request, channel)
        check_allowed(self.rules.find(channel_name(channel)).presence)
