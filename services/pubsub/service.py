"""PubSubService: clients publish to channels and subscribe to them.

A channel is any JSON entity; two are the same if their canonical forms are equal. It is there as soon as
somebody uses it. Notification: {"type": "message", "channel": C, "message": M}; the publisher gets its own message
if it is subscribed.

What else a channel has, the first of the rules says that matches its name: a history, presence, notices. Without
rules a channel has nothing but its subscribers.

Rules:
- Whoever publishes, a channel's history gets it: else there would be holes. The most that any node's rule keeps counts.
- Who may subscribe may look: `history` and `presence` ask the same hook.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from gateway import (
    PAYLOAD,
    AlreadySubscribed,
    BrokerUnavailable,
    Census,
    ChannelRule,
    Compound,
    Connection,
    Member,
    Rules,
    Selector,
    channel_name,
    history_of,
)
from services.pubsub.parameters import LIMIT_DEFAULT, limit_of, once_of, position_of, recovery_of
from services.pubsub.replies import NOTHING_TO_RECOVER, kept, members, recovered, stats
from services.requests import check_allowed, demand_allowed
from services.rpc import Fitted, Request, RPCService, acknowledged, rpc_command

__all__ = ["PubSubService"]


class PubSubService(RPCService):
    """Channels for clients. channels: rules, or tables of them as settings have them.

    Override `can_subscribe` and `can_publish` to say who may do what. Both may be plain methods or coroutines.
    """

    aliases = {"join": "subscribe", "leave": "unsubscribe"}  # noqa: RUF012 - never changed

    def __init__(self, name: str = "pubsub", *, channels: Iterable[ChannelRule | dict[str, Any]] = ()) -> None:
        super().__init__(name)
        self._rules = Rules.read(channels)

    @property
    def rules(self) -> Rules:
        """What is done with which channels."""
        return self._rules

    def can_subscribe(self, request: Request, channel: Any) -> bool | Awaitable[bool]:
        """Say whether this client may hear this channel; anybody unless overridden."""
        return True

    def can_publish(self, request: Request, channel: Any, message: Any) -> bool | Awaitable[bool]:
        """Say whether this client may publish this message; anybody unless overridden, where the rule allows it."""
        return True

    def notification(self, channel: Any) -> Any:
        """Shape what subscribers receive."""
        return {"type": "message", "channel": channel, "message": PAYLOAD}

    def roster_notice(
        self, channel: Any, member: Member, *, has_joined: bool, is_identity: bool
    ) -> tuple[Any, Selector] | None:
        """Tell the others who came and went, where the channel's rule says so."""
        if not is_identity or not self._rule(channel).notices:
            return None
        others = Selector(not_identity=member.identity, not_connection=member.owner.connection_id, is_whole=True)
        return {"type": "joined" if has_joined else "left", "channel": channel, "identity": member.identity}, others

    def has_roster_notices(self, channel: Any) -> bool:
        """Say that the others are told where the channel's rule says so."""
        return self._rule(channel).notices

    # -- hearing ---------------------------------------------------------------------------------------------------

    @rpc_command
    async def subscribe(self, request: Request, channel: Any, recover: Any = None) -> Any:
        """Hear a channel from now on. recover: a position, to have first what came behind it; or true."""
        is_recovering, since = recovery_of(recover)
        await demand_allowed(self.can_subscribe(request, channel))
        rule = self._rule(channel)
        history = self.topics.promised(channel, history_of(rule))
        async with self._present(request.connection, channel, rule):
            if history is not None and is_recovering and rule.recovery:
                shape = self.notification(channel)
                return recovered(await self.topics.recover(request.connection, channel, history, since), shape)
            await self.topics.subscribe(request.connection, channel, history=history)
        return NOTHING_TO_RECOVER if is_recovering else None

    @rpc_command
    def unsubscribe(self, request: Request, channel: Any) -> Awaitable[None] | None:
        """Hear it no more."""
        self.topics.unsubscribe(request.connection, channel)
        return self._leave(request.connection, channel) if self._rule(channel).presence else None

    @rpc_command
    async def history(self, request: Request, channel: Any, since: Any = None, limit: Any = LIMIT_DEFAULT) -> Compound:
        """Tell the last messages of a channel, or the first ones behind a position."""
        position, count = position_of(since), limit_of(limit)
        await demand_allowed(self.can_subscribe(request, channel))
        check_allowed(self.topics.promised(channel, history_of(self._rule(channel))))
        return kept(*await self.topics.recent(channel, count, position), since=position)

    @rpc_command
    async def presence(self, request: Request, channel: Any) -> Fitted:
        """Tell who subscribes to a channel, cluster-wide."""
        async with self.topics.reading(request.connection, channel):
            census = await self._census(request, channel)
            reply = self.fitted(request, members(census.members))
            self.topics.knows(request.connection, channel, census.version)
            return reply

    @rpc_command(name="presenceStats")
    async def presence_stats(self, request: Request, channel: Any) -> dict[str, Any]:
        """Tell how many subscribe to a channel, cluster-wide."""
        return stats((await self._census(request, channel)).members)

    # -- publishing ------------------------------------------------------------------------------------------------

    @rpc_command
    def publish(self, request: Request, channel: Any, message: Any, key: Any = None) -> Awaitable[None]:
        """Publish a message; answered when Redis has it. key: published once under it, in some minutes."""
        once = once_of(key, request.connection)
        verdict = self.can_publish(request, channel, message)
        if inspect.isawaitable(verdict):
            return self._publish_when(verdict, request.connection, channel, message, once)
        check_allowed(verdict)  # at once: so a client's burst goes out as one pipeline
        return self._publish(request.connection, channel, message, once)

    def publish_from_backend(
        self, channel: Any, message: Any, once: str | None = None, *, by: Connection | None = None
    ) -> Awaitable[None]:
        """Publish a message as who may always. once: an idempotency key. by: the client whose quota it counts in."""
        history = self.topics.promised(channel, history_of(self._rule(channel)))
        if history is not None:
            return acknowledged(self.topics.publish(channel, message, history=history, once=once, by=by))
        if once is not None:
            return acknowledged(self.topics.publish(channel, message, once=once, by=by))
        return acknowledged(self.topics.publish(channel, message))

    async def _publish_when(
        self, verdict: Awaitable[bool], client: Connection, channel: Any, message: Any, once: str | None
    ) -> Any:
        check_allowed(await verdict)
        return self._publish(client, channel, message, once)

    def _publish(self, client: Connection, channel: Any, message: Any, once: str | None) -> Awaitable[None]:
        rule = self._rule(channel)
        check_allowed(rule.client_publish and (once is None or rule.client_keys))
        return self.publish_from_backend(channel, message, once, by=client)

    # -- inner -----------------------------------------------------------------------------------------------------

    def _rule(self, channel: Any) -> ChannelRule:
        """Find a channel's rule. Raises InvalidChannel."""
        return self._rules.find(channel_name(channel) if self._rules else "")

    @asynccontextmanager
    async def _present(self, connection: Connection, channel: Any, rule: ChannelRule) -> AsyncIterator[None]:
        """Enter a channel's roster, where there is one; who then could not subscribe leaves it.

        Before subscribing, for nothing may be awaited between a recovery and its reply.
        """
        if not rule.presence:
            yield
            return
        if self.topics.is_subscribed(connection, channel):
            raise AlreadySubscribed
        entered = await self.rosters.enter(connection, channel)
        try:
            yield
            self.topics.knows(connection, channel, entered.version)  # who asks later is told a later list
        except BaseException:
            with suppress(BrokerUnavailable):  # then it is done as soon as it can be; what went wrong first is told
                await self.rosters.leave(connection, channel)
            raise

    async def _leave(self, connection: Connection, channel: Any) -> None:
        await self.rosters.leave(connection, channel)

    async def _census(self, request: Request, channel: Any) -> Census:
        await demand_allowed(self.can_subscribe(request, channel))
        check_allowed(self._rule(channel).presence)
        return await self.rosters.census(channel)
