"""The history of pub/sub channels whose rule has one."""

from typing import Any

from snorky.gateway import Compound, channel_name, history_of
from snorky.services.pubsub.parameters import LIMIT_DEFAULT, limit_of, order_of, position_of
from snorky.services.pubsub.replies import kept, page
from snorky.services.pubsub.subscribing import Subscribing
from snorky.services.requests import check_allowed
from snorky.services.rpc import Request, RPCError, rpc_command

__all__ = ["HistoryCommands"]


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
        if asked is not None:
            beyond = None if position is None else position.offset
            publications, top = await self.topics.page(channel, count, order=asked, beyond=beyond)
            if position is not None and position.epoch not in ("", top.epoch):
                raise RPCError("Position is of an earlier history", "position_lost")
            return page(publications, top)
        since = await self.located(channel, position)
        return kept(*await self.topics.recent(channel, count, since), since=since)
