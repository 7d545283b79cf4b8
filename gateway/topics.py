"""Topics: the channels of one service, as it has them. One of the primitives; see `gateway.primitives`.

A channel that keeps a history (see `gateway.history`) is repaired by each node for all its subscribers: what the node
missed is read from history and delivered in its place. Whoever subscribes says that the channel keeps one.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, overload

from gateway.codec import PAYLOAD, channel_key, json_size
from gateway.connection import Connection
from gateway.errors import NotSubscribed
from gateway.fanout import Listener, OnGap
from gateway.history import History, Recovery
from gateway.primitives import Cluster, GapNotice, LooksLikeReply, Notification, is_reply
from gateway.publication import Position, Publication, Selector
from gateway.quotas import KEY_BYTES, MESSAGE_BYTES, Charge

__all__ = ["Topics"]


class Topics:
    """The channels of one service: publish to them, subscribe connections to them."""

    __slots__ = ("_cluster", "_gap_notice", "_notification", "_service")

    def __init__(self, cluster: Cluster, service: str, notification: Notification, gap_notice: GapNotice) -> None:
        self._cluster = cluster
        self._service = service
        self._notification = notification
        self._gap_notice = gap_notice

    @overload
    def publish(self, channel: Any, payload: Any, *, to: Selector | None = None) -> asyncio.Future[int]: ...

    @overload
    def publish(
        self,
        channel: Any,
        payload: Any,
        *,
        history: History,
        once: str | None = None,
        by: Connection | None = None,
    ) -> asyncio.Future[Position]: ...

    @overload
    def publish(
        self, channel: Any, payload: Any, *, once: str, by: Connection | None = None
    ) -> asyncio.Future[None]: ...

    def publish(
        self,
        channel: Any,
        payload: Any,
        *,
        to: Selector | None = None,
        history: History | None = None,
        once: str | None = None,
        by: Connection | None = None,
    ) -> asyncio.Future[int] | asyncio.Future[Position] | asyncio.Future[None]:
        """Publish to all subscribers of a channel, on all nodes. channel, payload: any JSON entity.

        to: only to these subscribers. history: keep it so long, for who reads `history`; the future then returns
        its position. once: an idempotency key of this channel; what is published under it again within 300 s is
        answered alike, and not published. Await the future to know that Redis has it; its order among this node's
        publications is settled either way (not that of `once` without a history). Returns the number of nodes that
        hear the channel; None with `once`. by: the client that publishes; what Redis stores counts in its quota, and
        LimitExceeded is raised at once. Raises InvalidChannel and InvalidMessage at once; the future raises
        BrokerUnavailable. InvalidMessage, too: the payload is the whole message, and looks like a reply.
        """
        if is_reply(payload) and ((to is not None and to.is_whole) or self._notification(channel) is PAYLOAD):
            raise LooksLikeReply
        if history is None and once is None:
            return self._cluster.publish(self._service, channel, payload, to=to)
        charge = None if by is None else self._charge(by, channel, payload, history, once)
        try:
            published: asyncio.Future[Position] | asyncio.Future[None]
            if history is not None:
                published = self._cluster.publish_kept(self._service, channel, payload, history, once=once)
            else:
                published = self._cluster.publish_once(self._service, channel, payload, once or "")
        except BaseException:
            if charge is not None:
                charge.give_back()
            raise
        if charge is not None:
            published.add_done_callback(charge.settle)
        return published

    def promised(self, channel: Any, own: History | None) -> History | None:
        """Tell what a channel keeps: what this node's rule says, or more if another node's rule promises more.

        Raises InvalidChannel.
        """
        return self._cluster.promised(self._service, channel, own)

    def _charge(
        self, client: Connection, channel: Any, payload: Any, history: History | None, once: str | None
    ) -> Charge:
        """Count what a publication stores. Raises LimitExceeded."""
        key = channel_key(self._service, channel)
        size = 0 if once is None else KEY_BYTES + len(once) + len(key)
        if history is not None:
            size += MESSAGE_BYTES + json_size(payload)
        return self._cluster.quotas.charge(client, size, None if history is None else key)

    async def history(self, channel: Any, since: Position) -> list[Publication] | None:
        """Read what was published with a history behind a position, in order; None = it can no longer be had.

        Payloads are JSON, not yet checked. Raises InvalidChannel, BrokerUnavailable.
        """
        return await self._cluster.keeper.read(channel_key(self._service, channel), since, is_away=True)

    async def recent(
        self, channel: Any, limit: int, since: Position | None = None
    ) -> tuple[list[Publication], Position]:
        """Read the last publications of a channel that keeps them, limit at most. See Keeper.recent."""
        return await self._cluster.keeper.recent(channel_key(self._service, channel), limit, since)

    async def position(self, channel: Any) -> Position:
        """Tell where a channel's history stands; it begins here if it has none. Raises as `history`."""
        return await self._cluster.keeper.position(channel_key(self._service, channel))

    async def subscribe(self, connection: Connection, channel: Any, *, history: History | None = None) -> None:
        """Subscribe a connection; on return, whatever is published from now on reaches it.

        history: what the channel keeps; what this node misses is then read from there, and if it is not there any
        more the client is not told. Raises AlreadySubscribed, LimitExceeded, InvalidChannel, BrokerUnavailable
        (nothing is left behind), ConnectionClosed.
        """
        is_kept = history is not None
        await self._cluster.subscribe(connection, self._service, channel, self._notification, is_kept=is_kept)

    async def recover(
        self, connection: Connection, channel: Any, history: History, since: Position | None = None
    ) -> Recovery:
        """Subscribe a connection to a channel that keeps a history, and tell what it missed behind a position.

        since: None = nothing was missed, it begins now. What is published from now on reaches it behind what the
        Recovery holds, with no hole and nothing twice, its notifications with `offset` and `position`; if there is a
        hole that history cannot fill, `Service.gap_notice` says so. Make the reply of it at once, without an await
        in between: notifications may come in the next step of the loop.

        More than 300 publications or 1 MiB are not replayed: not recovered. Raises as `subscribe`; and
        ConfigurationError: the service's notification is no object, so there is no place for a position in it.
        """
        return await self._cluster.recover(
            connection, self._service, channel, self._notification, self._gap_notice, since=since
        )

    @asynccontextmanager
    async def joining(self, connection: Connection, channel: Any) -> AsyncIterator[None]:
        """Subscribe a connection, and hold what comes for it until the block's end and the reply made of it.

        So a client that is told what there is (a list of members) hears of every change behind that, and of none
        in front of it. Within the block: `Rosters.enter` or `Rosters.census`, and `knows` with its version; then return
        the reply at once. If it raises the subscription is undone. Raises as `subscribe`.
        """
        await self._cluster.subscribe(connection, self._service, channel, self._notification, is_held=True)
        try:
            yield
        except BaseException:
            with suppress(NotSubscribed):  # it left meanwhile
                self.unsubscribe(connection, channel)
            raise
        # not before the reply, which is written in this step of the loop
        asyncio.get_running_loop().call_soon(self._cluster.release, connection, self._service, channel)

    @asynccontextmanager
    async def reading(self, connection: Connection, channel: Any) -> AsyncIterator[None]:
        """Hold what comes for a connection, if it subscribes, while it is about to be told what there is.

        Within the block as within that of `joining`; nothing is subscribed, and nothing undone.
        """
        is_held = self._cluster.hold(connection, self._service, channel)
        try:
            yield
        finally:
            if is_held:
                asyncio.get_running_loop().call_soon(self._cluster.release, connection, self._service, channel)

    def knows(self, connection: Connection, channel: Any, version: int) -> None:
        """Note that a subscriber is told who is there, as of a version: of `Entered`, or of `Rosters.census`.

        Notices that this list has already do not reach it any more. Make the reply at once.
        """
        self._cluster.knows(connection, self._service, channel, version)

    def unsubscribe(self, connection: Connection, channel: Any) -> None:
        """Undo `subscribe`. Raises NotSubscribed, InvalidChannel."""
        self._cluster.unsubscribe(connection, self._service, channel)

    def is_subscribed(self, connection: Connection, channel: Any) -> bool:
        """True if the connection subscribes to the channel, or is about to."""
        return self._cluster.is_subscribed(connection, self._service, channel)

    async def listen(
        self, channel: Any, listener: Listener, *, history: History | None = None, on_gap: OnGap | None = None
    ) -> None:
        """Hear a channel on this node itself: for services that look into what they pass on.

        listener: is handed what one read brought, in order, on the event loop; one per channel. history: what the
        channel keeps; what has a position then comes once and in order, and on_gap is called, between two calls of
        the listener, where history could not fill a hole. Raises AlreadySubscribed, InvalidChannel,
        BrokerUnavailable.
        """
        is_kept = history is not None
        await self._cluster.listen(self._service, channel, listener, is_kept=is_kept, on_gap=on_gap)

    def unlisten(self, channel: Any) -> None:
        """Undo `listen`. Raises NotSubscribed, InvalidChannel."""
        self._cluster.unlisten(self._service, channel)
