"""The history of pub/sub channels whose rule has one."""

from typing import Any

from snorky.gateway import Compound, Order, Position, Topics, channel_name, history_of
from snorky.services.pubsub.parameters import LIMIT_DEFAULT, limit_of, order_of, position_of
from snorky.services.pubsub.replies import kept, page
from snorky.services.pubsub.subscribing import Subscribing
from snorky.services.requests import check_allowed
from snorky.services.rpc import Request, RPCError, rpc_command

__all__ = ["HistoryCommands", "read_history"]


class HistoryCommands(Subscribing):
    """The command `history` of a PubSubService."""

    @rpc_command
    async def history(
        self, request: Request, channel: Any, since: Any = None, limit: Any = LIMIT_DEFAULT, order: Any = None
    ) -> Compound:
        """Reply the last messages of a channel, or with `since` the first ones after that position.

        order: "oldest" or "newest": reply a page of messages, with that one first, or, in this order, those behind
        `since`.
        """
        position, asked = position_of(since), order_of(order)
        count = limit_of(limit, 1 if asked is None else 0)
        self.demand(request, "history", channel)
        await self._demand_subscriber(request, channel)
        check_allowed(self.topics.promised(channel, history_of(self.rules.find(channel_name(channel)))))
        has_attributes = request.connection.frontend is not None  # else its client would see them
        reply, _ = await read_history(self.topics, channel, position, count, asked, has_attributes=has_attributes)
        return reply


async def read_history(
    topics: Topics, channel: Any, since: Position | None, count: int, order: Order | None, *, has_attributes: bool
) -> tuple[Compound, int]:
    """Build the reply to `history` for a channel that has one; returns also its number of messages. Raises RPCError."""
    if order is not None:
        publications, top = await topics.page(
            channel, count, order=order, beyond=None if since is None else since.offset
        )
        if since is not None and since.epoch not in ("", top.epoch):
            raise RPCError("Position is of an earlier history", "position_lost")
        return page(publications, top, has_attributes=has_attributes), len(publications)
    if since is not None and not since.tag:
        since = await topics.locate(channel, since.epoch, since.offset) or since
    publications, top = await topics.recent(channel, count, since)
    return kept(publications, top, since=since, has_attributes=has_attributes), len(publications)
