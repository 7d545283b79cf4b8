"""The rosters of pub/sub channels whose rule has `presence`: a client enters when it subscribes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from snorky.gateway import AlreadySubscribed, BrokerUnavailable, Connection, Rosters, Topics

__all__ = ["present"]


@asynccontextmanager
async def present(topics: Topics, rosters: Rosters, connection: Connection, channel: Any) -> AsyncIterator[None]:
    """Enter a channel's roster; leave it again if the block, which subscribes, fails. Raises AlreadySubscribed.

    Entering comes first because no `await` is allowed between a recovery and its reply.
    """
    if topics.is_subscribed(connection, channel):
        raise AlreadySubscribed
    entered = await rosters.enter(connection, channel)
    try:
        yield
        topics.knows(connection, channel, entered.version)  # `presence` may note a later version
    except BaseException:
        with suppress(BrokerUnavailable):  # then the node retries; report the first error
            await rosters.leave(connection, channel)
        raise
