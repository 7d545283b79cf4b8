"""Subscribing to pub/sub channels: for a client that asks, and for one that the backend subscribes.

The backend's subscriptions are server-side subscriptions. The client is notified with the fields of the reply to
`subscribe`:

    {"type": "subscribed", "channel": C, "position": P, "recovered": R, "messages": [...], "expiresInS": S}
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from snorky.gateway import (
    Compound,
    Connection,
    Grant,
    History,
    NotSubscribed,
    Position,
    Recovery,
    SubscribeTerms,
    channel_name,
    history_of,
)
from snorky.services.pubsub.parameters import recovery_of
from snorky.services.pubsub.presence import PresenceCommands, present
from snorky.services.pubsub.replies import NOTHING_TO_RECOVER, recovered, replayed, with_members
from snorky.services.requests import check_allowed
from snorky.services.rpc import Request

__all__ = ["Subscribing"]

BEGINNING = Position("", 0, "")  # of the present epoch


class Subscribing(PresenceCommands):
    """The part of a PubSubService that subscribes connections."""

    async def subscribe_client(
        self,
        connection: Connection,
        channel: Any,
        *,
        recover: bool | str,
        expires_in_s: float | None,
        permit: Callable[[], object],
    ) -> None:
        """Subscribe a client by order of the backend, without asking rules and hooks, and notify it.

        permit: called when it is subscribed; if it raises, the subscription is undone. Raises as Topics.subscribe.
        """
        is_recovering, since = recovery_of(recover)
        rule = self.rules.find(channel_name(channel))
        history, most = self.topics.promised(channel, history_of(rule)), rule.subscribers_max
        notification: dict[str, Any] = {"type": "subscribed", "channel": channel}
        reply, fields = Compound(), NOTHING_TO_RECOVER if is_recovering else {}
        async with present(self.topics, self.rosters, connection, channel) if rule.presence else nullcontext():
            if history is not None and is_recovering and rule.recovery:
                shape = self.notification(channel)
                recovery = await self._recover(connection, channel, history, since, most)
                reply = recovered(recovery, channel, shape, has_attributes=connection.frontend is not None)
                fields = reply.value if isinstance(reply.value, dict) else {}
            else:  # held, so that the notification comes first
                async with self.topics.atomic_subscribe(connection, channel, history=history, subscribers_max=most):
                    pass
            try:
                permit()
            except BaseException:
                self.cut_subscription(connection, channel)
                raise
        if expires_in_s is not None:
            notification["expiresInS"] = int(expires_in_s)
        instead = notification | reply.instead if isinstance(reply.instead, dict) else None
        self.send_compound(connection, notification | fields, reply, instead)

    async def located(self, channel: Any, since: Position | None) -> Position | None:
        """Complete a position that has no tag. If the channel cannot be read from there, it stays as it is."""
        if since is None or since.tag:
            return since
        return await self.topics.locate(channel, since.epoch, since.offset) or since

    async def _recover(
        self, connection: Connection, channel: Any, history: History, since: Position | None, most: int
    ) -> Recovery:
        located = await self.located(channel, since)
        recovery = await self.topics.recover(connection, channel, history, located, subscribers_max=most)
        if since == BEGINNING and not recovery.position.offset:  # the channel had no history: it began with this client
            return replace(recovery, is_recovered=True)
        return recovery

    async def _subscribe(
        self, request: Request, channel: Any, since: Position | None, grant: Grant | None, *, is_recovering: bool
    ) -> Compound | dict[str, Any] | None:
        """Subscribe a client that asks, after its rules; a server-side subscription begins again, from `since`."""
        await self._demand_subscriber(request, channel)
        connection, rule = request.connection, self.rules.find(channel_name(channel))
        terms = None if grant is None else grant.terms
        if terms is not None and terms.lists_members:
            check_allowed(self.permits(request, "presence", channel, grant, is_subscribing=True))
            check_allowed(rule.presence)
        is_again = self.is_server_side(connection, channel) and self.topics.is_subscribed(connection, channel)
        history, most = self.topics.promised(channel, history_of(rule)), rule.subscribers_max
        is_entering = rule.presence and not is_again
        async with present(self.topics, self.rosters, connection, channel, terms) if is_entering else nullcontext():
            self.demand_still(request, "subscribe", channel, grant)
            if is_again:
                self.cluster.control.subscriptions.begins_again(connection, self.name, channel)
                self.topics.suspend(connection, channel)
            try:
                if history is not None and is_recovering and rule.recovery:
                    shape = self.notification(channel)
                    recovery = await self._recover(connection, channel, history, since, most)
                    return recovered(recovery, channel, shape, has_attributes=connection.frontend is not None)
                if terms is not None:
                    if not self.permits(request, "history", channel, grant, is_subscribing=True):
                        terms = replace(terms, replays_last=False)
                    return await self._subscribe_by_terms(terms, connection, channel, history, most)
                if connection.frontend is None:
                    await self.topics.subscribe(connection, channel, history=history, subscribers_max=most)
                else:  # held, so that the reply comes first
                    async with self.topics.atomic_subscribe(connection, channel, history=history, subscribers_max=most):
                        pass
            except BaseException:
                if is_again and rule.presence:
                    self.rosters.leave_soon(connection, channel)
                raise
        return NOTHING_TO_RECOVER if is_recovering else None

    async def _subscribe_by_terms(
        self, terms: SubscribeTerms, connection: Connection, channel: Any, history: History | None, most: int
    ) -> Compound | dict[str, Any] | None:
        """Subscribe a client; returns the reply, with the parts that the terms of its frontend ask for."""
        if history is None or not terms.replays_last:
            async with self.topics.atomic_subscribe(connection, channel, history=history, subscribers_max=most):
                return await self._with_members(None, connection, channel) if terms.lists_members else None
        recovery = await self.topics.recover(connection, channel, history, subscribers_max=most)
        try:
            async with self.topics.reading(connection, channel):  # what is published from here on follows the reply
                found, _ = await self.topics.recent(channel, 1)
                reply = replayed(found, recovery.position)
                if terms.lists_members:
                    await self._with_members(reply, connection, channel)
            if not self.topics.is_subscribed(connection, channel):
                raise NotSubscribed
        except BaseException:
            self.cut_subscription(connection, channel)
            raise
        return reply

    async def _with_members(
        self, reply: Compound | None, connection: Connection, channel: Any
    ) -> Compound | dict[str, Any]:
        census = await self.rosters.census(channel)
        found = with_members(reply, census.members, max_bytes=connection.outbox_max_bytes // 4)
        self.topics.knows(connection, channel, census.version)
        return found
