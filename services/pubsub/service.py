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
)
from snorky.services.granting import demand_text, expires_in_s, granted
from snorky.services.pubsub.parameters import check_flag, recovery_of
from snorky.services.pubsub.publishing import PublishCommands
from snorky.services.pubsub.replies import with_expiry
from snorky.services.rpc import Request, rpc_command

__all__ = ["PubSubService"]


class PubSubService(PublishCommands):
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

    # -- inner -----------------------------------------------------------------------------------------------------

    async def _leave(self, connection: Connection, channel: Any) -> None:
        await self.rosters.leave(connection, channel)
