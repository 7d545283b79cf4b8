"""PubSubService: clients publish to channels and subscribe to them.

A channel is any JSON entity; two are the same if their canonical forms are equal. Channels need not be created.
Notification: {"type": "message", "channel": C, "message": M}; the publisher gets its own message if it is subscribed.

The first channel rule that matches a channel's name enables its options: a history, presence, join and leave notices.
A channel without a rule has none of them.

Rules:
- A channel with a history stores every message, from clients and backends alike: otherwise there would be gaps. If
  nodes' rules differ, the one that keeps most applies.
- Rules say which clients may do what (`snorky.gateway.Access`). `can_subscribe` is also asked for `history`,
  `presence` and `presenceStats`.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Any

from snorky.gateway import (
    PAYLOAD,
    Access,
    ChannelRule,
    ConfigurationError,
    Connection,
    NotSubscribed,
    Rules,
    Unmatched,
    Verbatim,
    channel_name,
    history_of,
)
from snorky.services.granting import demand_text, expires_in_s, granted
from snorky.services.pubsub.history import HistoryCommands
from snorky.services.pubsub.parameters import check_flag, once_of, recovery_of
from snorky.services.pubsub.replies import with_expiry
from snorky.services.requests import check_allowed, demand_allowed
from snorky.services.rpc import Request, acknowledged, rpc_command

__all__ = ["PubSubService"]


class PubSubService(HistoryCommands):
    """Pub/sub for clients. channels: channel rules, as ChannelRule or as tables of the settings.

    unmatched: "open" or "closed", for channels that no rule matches; None = open unless the node authenticates clients.
    Override `can_subscribe` and `can_publish` to restrict clients further. Both may be plain methods or coroutines.
    """

    hook_operations = ("subscribe", "publish")
    reloadable_options = ("channels", "unmatched")
    aliases = {"join": "subscribe", "leave": "unsubscribe"}  # noqa: RUF012 - never changed

    def __init__(
        self,
        name: str = "pubsub",
        *,
        channels: Iterable[ChannelRule | dict[str, Any]] = (),
        unmatched: Unmatched | None = None,
    ) -> None:
        super().__init__(name)
        self.access: Access[ChannelRule] = Access(name, Rules.read(channels), unmatched)

    @property
    def rules(self) -> Rules[ChannelRule]:
        """The channel rules, in their order."""
        return self.access.rules

    def can_publish(self, request: Request, channel: Any, message: Any) -> bool | Awaitable[bool]:
        """Return whether a client that the channel's rule permits may publish. Unless overridden, it may."""
        return True

    def notification(self, channel: Any) -> Any:
        """Return the message that subscribers receive, with PAYLOAD in place of the published one."""
        return {"type": "message", "channel": channel, "message": PAYLOAD}

    # -- subscribing -----------------------------------------------------------------------------------------------

    @rpc_command
    async def subscribe(
        self, request: Request, channel: Any, recover: Any = None, token: Any = None, serverSide: Any = False
    ) -> Any:
        """Subscribe to a channel. recover: a position, to get the messages after it first; or true, to start here.

        token: a subscription token, which may permit it where a rule says `token`; the subscription ends with it, and
        the reply has `expiresInS`. serverSide: only if the backend has subscribed the client.
        """
        is_recovering, since = recovery_of(recover)
        check_flag(serverSide)
        ordered = self.cluster.control.subscriptions
        is_ordered = await ordered.settled(request.connection, self.name, channel, is_restored=serverSide)
        if serverSide and not is_ordered:
            raise NotSubscribed
        async with granted(self, request, channel, token) as grant:
            self.demand(request, "subscribe", channel, grant)
            reply = await self._subscribe(request, channel, since, grant, is_recovering=is_recovering)
        return reply if grant is None else with_expiry(reply, expires_in_s(self, grant))

    @rpc_command(name="refreshSubscription")
    async def refresh_subscription(self, request: Request, channel: Any, token: Any) -> dict[str, int | None]:
        """Replace the token of a subscription by a later one; replies {"expiresInS"}.

        If it is not accepted, the present one remains.
        """
        demand_text(token)
        if not self.topics.is_subscribed(request.connection, channel):
            raise NotSubscribed
        async with granted(self, request, channel, token, is_new=False) as grant:
            self.demand(request, "subscribe", channel, grant)
            await self._demand_subscriber(request, channel)
            if grant is None or not self.topics.is_subscribed(request.connection, channel):
                raise NotSubscribed
        return {"expiresInS": expires_in_s(self, grant)}

    @rpc_command
    def unsubscribe(self, request: Request, channel: Any) -> Awaitable[None] | None:
        """Unsubscribe from a channel."""
        self.topics.unsubscribe(request.connection, channel)
        if self._rule(channel).presence:
            return self._leave(request.connection, channel)
        with suppress(ConfigurationError):  # an earlier rule may have had presence; without a directory: no rosters
            self.rosters.leave_soon(request.connection, channel)
        return None

    # -- publishing ------------------------------------------------------------------------------------------------

    @rpc_command
    def publish(self, request: Request, channel: Any, message: Any, key: Any = None) -> Awaitable[None]:
        """Publish a message; replies once Redis has it. key: idempotency key; a repetition within 300 s is ignored."""
        once = once_of(key, request.connection)
        value = message.value if isinstance(message, Verbatim) else message
        self._demand_publish(request, channel, message, once)
        verdict = self.can_publish(request, channel, value)
        if inspect.isawaitable(verdict) or "publish" in self.asks_backend:
            return self._publish_when(verdict, request.connection, channel, message, once)
        check_allowed(verdict)  # without an await, so a client's burst becomes one Redis pipeline
        return self.publish_from_backend(channel, message, once, by=request.connection)

    def publish_from_backend(
        self, channel: Any, message: Any, once: str | None = None, *, by: Connection | None = None
    ) -> Awaitable[None]:
        """Publish a message, without rules and hooks. once: idempotency key. by: the client whose quota it uses."""
        return acknowledged(self.published(channel, message, once, by=by))

    def published(
        self, channel: Any, message: Any, once: str | None = None, *, by: Connection | None = None
    ) -> "asyncio.Future[Any]":
        """As `publish_from_backend`; the result is that of `Topics.publish`."""
        history = self.topics.promised(channel, history_of(self._rule(channel)))
        if history is not None:
            return self.topics.publish(channel, message, history=history, once=once, by=by)
        if once is not None:
            return self.topics.publish(channel, message, once=once, by=by)
        return self.topics.publish(channel, message)

    async def _publish_when(
        self, verdict: bool | Awaitable[bool], client: Connection, channel: Any, message: Any, once: str | None
    ) -> Any:
        await demand_allowed(verdict)
        await self.ask_backend("publish", client, channel, message.value if isinstance(message, Verbatim) else message)
        return self.publish_from_backend(channel, message, once, by=client)

    def _demand_publish(self, request: Request, channel: Any, message: Any, once: str | None) -> None:
        rule = self._rule(channel)
        if not self.access.is_open(rule, "publish"):  # most are: spare the rest
            self.demand(request, "publish", channel)
        check_allowed(once is None or rule.client_keys)
        if rule.publishes_per_s or rule.message_max_bytes or self.topics.limits_publishers:
            self.topics.check_publisher(request.connection, channel, message, rule)

    # -- inner -----------------------------------------------------------------------------------------------------

    def _rule(self, channel: Any) -> ChannelRule:
        """Find a channel's rule. Raises InvalidChannel."""
        rules = self.access.rules
        return rules.find(channel_name(channel) if rules else "")

    async def _leave(self, connection: Connection, channel: Any) -> None:
        await self.rosters.leave(connection, channel)
