"""Topics: the channels of one service. One of the primitives; see `snorky.gateway.sdk.handles`.

If a channel has a history (see `snorky.gateway.contracts.history`), each node repairs it for all local subscribers:
publications that the node missed are read from history and delivered in order. The subscribe call states that the
channel has a history.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, overload

from snorky.gateway.config.rules.channel_rules import ChannelRule
from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.storage_quotas import KEY_BYTES, MESSAGE_BYTES, STATE_BYTES, Charge, was_stored
from snorky.gateway.contracts.history import History, Order, Recovery
from snorky.gateway.delivery.fan_out import Listener, OnGap
from snorky.gateway.errors import NotSubscribed
from snorky.gateway.protocol.codec import Verbatim, channel_key, json_size
from snorky.gateway.protocol.publication import Position, Publication, Selector
from snorky.gateway.protocol.splicing import PAYLOAD
from snorky.gateway.sdk.handles import LooksLikeReply, NodeServices, is_reply
from snorky.gateway.sdk.service_channels import GapNotice, Notification

__all__ = ["Topics"]


class Topics:
    """The channels of one service: publish to them, subscribe connections to them."""

    __slots__ = ("_cluster", "_gap_notice", "_notification", "_service")

    def __init__(self, cluster: NodeServices, service: str, notification: Notification, gap_notice: GapNotice) -> None:
        self._cluster = cluster
        self._service = service
        self._notification = notification
        self._gap_notice = gap_notice

    @overload
    def publish(
        self, channel: Any, payload: Any, *, to: Selector | None = None, attributes: bytes = b""
    ) -> asyncio.Future[int]: ...

    @overload
    def publish(
        self,
        channel: Any,
        payload: Any,
        *,
        history: History,
        once: str | None = None,
        by: Connection | None = None,
        to: Selector | None = None,
        attributes: bytes = b"",
    ) -> asyncio.Future[Position]: ...

    @overload
    def publish(
        self, channel: Any, payload: Any, *, once: str, by: Connection | None = None, attributes: bytes = b""
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
        attributes: bytes = b"",
    ) -> asyncio.Future[int] | asyncio.Future[Position] | asyncio.Future[None]:
        """Publish to all subscribers of a channel, on all nodes. channel, payload: any JSON value, or a Verbatim.

        to: send it only to these subscribers. With a history, it is stored for all.
        history: retain it this long, for clients that read the history.
        once: an idempotency key of this channel. Publishing again with the same key within 300 s returns the same
        result and publishes nothing.
        by: the client that publishes; the bytes stored in Redis count against its quota.
        attributes: as `write_attributes` writes them, for clients of protocols that have them. Without a history, a
        publication with `to` has none.

        The future completes when Redis has the publication. Its result is the position if there is a history, None with
        `once` alone, else the number of nodes that receive the channel. This node's publications keep the order of the
        calls, awaited or not, except those with `once` and no history. Raises at once InvalidChannel, LimitExceeded
        (the quota) and InvalidMessage, the last also if the payload is the whole message and looks like a reply. The
        future raises BrokerUnavailable.
        """
        value = payload.value if isinstance(payload, Verbatim) else payload
        if is_reply(value) and ((to is not None and to.is_whole) or self._notification(channel) is PAYLOAD):
            raise LooksLikeReply
        if history is None and once is None:
            return self._cluster.channels.publish(self._service, channel, payload, to=to, attributes=attributes)
        charge = None if by is None else self._charge(by, channel, payload, history, once, len(attributes))
        try:
            published: asyncio.Future[Position] | asyncio.Future[None]
            if history is not None:
                published = self._cluster.channels.publish_kept(
                    self._service, channel, payload, history, once=once, to=to, attributes=attributes
                )
            else:
                published = self._cluster.channels.publish_once(
                    self._service, channel, payload, once or "", attributes=attributes
                )
        except BaseException:
            if charge is not None:
                charge.give_back()
            raise
        if charge is not None:
            published.add_done_callback(charge.settle)
        return published

    @property
    def limits_publishers(self) -> bool:
        """True if `check_publisher` must be called for every publication of a client."""
        return self._cluster.cluster_limits.publishes.are_set

    def check_publisher(self, client: Connection, channel: Any, message: Any, rule: ChannelRule) -> None:
        """Count a publication of a client against its identity's limit and the channel's, before it is published.

        Raises LimitExceeded (`rate_limited`, or `too_large`), InvalidChannel.
        """
        self._cluster.cluster_limits.publishes.check(client, channel_key(self._service, channel), message, rule)

    def promised(self, channel: Any, own: History | None) -> History | None:
        """Return a channel's retention: by this node's rule, or more if another node's rule retains more.

        Raises InvalidChannel.
        """
        return self._cluster.channels.promised(self._service, channel, own)

    def _charge(
        self,
        client: Connection,
        channel: Any,
        payload: Any,
        history: History | None,
        once: str | None,
        attributes_bytes: int,
    ) -> Charge:
        """Count what a publication stores in the client's quota. Raises LimitExceeded."""
        key = channel_key(self._service, channel)
        size = 0 if once is None else KEY_BYTES + len(once) + len(key)
        if history is not None:
            size += MESSAGE_BYTES + json_size(payload) + attributes_bytes
        return self._cluster.quotas.charge(client, size, None if history is None else key)

    async def history(self, channel: Any, since: Position) -> list[Publication] | None:
        """Read the publications after a position, in order; None = not all of them are available any more.

        Payloads are JSON, not yet checked. Raises InvalidChannel, BrokerUnavailable.
        """
        return await self._cluster.channels.history_store.read(channel_key(self._service, channel), since, is_away=True)

    async def recent(
        self, channel: Any, limit: int, since: Position | None = None
    ) -> tuple[list[Publication], Position]:
        """Read the latest publications of a channel with a history, at most `limit`. See HistoryStore.recent."""
        return await self._cluster.channels.history_store.recent(channel_key(self._service, channel), limit, since)

    async def page(
        self, channel: Any, limit: int, *, order: Order, beyond: int | None = None
    ) -> tuple[list[Publication], Position]:
        """Read publications of a channel with a history in an order. See HistoryStore.page."""
        history_store = self._cluster.channels.history_store
        return await history_store.page(channel_key(self._service, channel), limit, order=order, beyond=beyond)

    async def locate(self, channel: Any, epoch: str, offset: int) -> Position | None:
        """Find a position of which only epoch and offset are known. See HistoryStore.locate."""
        return await self._cluster.channels.history_store.locate(channel_key(self._service, channel), epoch, offset)

    async def position(self, channel: Any) -> Position:
        """Return a channel's present position; starts a history if there is none. Raises as `history`."""
        return await self._cluster.channels.history_store.position(channel_key(self._service, channel))

    async def subscribe(
        self, connection: Connection, channel: Any, *, history: History | None = None, subscribers_max: int = 0
    ) -> None:
        """Subscribe a connection; on return, it receives everything that is published from now on.

        history: the channel's retention; publications that this node misses are then read from history, and if they
        are no longer available, the client is not notified. Raises AlreadySubscribed, LimitExceeded, InvalidChannel,
        BrokerUnavailable (the connection is not subscribed then), ConnectionClosed. subscribers_max: of the channel,
        on all nodes; 0 = any number.
        """
        await self._cluster.channels.subscribe(
            connection,
            self._service,
            channel,
            self._notification,
            is_kept=history is not None,
            subscribers_max=subscribers_max,
        )

    async def recover(
        self,
        connection: Connection,
        channel: Any,
        history: History,
        since: Position | None = None,
        *,
        subscribers_max: int = 0,
    ) -> Recovery:
        """Subscribe a connection to a channel with a history, and return what it missed since a position.

        since: None = it missed nothing and starts now. It then receives everything published after what the
        Recovery contains, without loss or duplicates, in notifications with `offset` and `position`; if
        publications are lost that history no longer has, it receives `Service.gap_notice`. Write the reply at once,
        without an await in between: notifications may follow in the next loop iteration.

        More than 300 publications or 1 MiB are not replayed: the client is not recovered. Raises as `subscribe`; and
        ConfigurationError: the service's notification is not an object, so a position cannot be added.
        """
        key, charge = channel_key(self._service, channel), None
        if not self._cluster.channels.is_followed(self._service, channel):  # it may begin the history
            charge = self._cluster.quotas.charge(connection, STATE_BYTES + len(key))
        try:
            return await self._cluster.channels.recover(
                connection,
                self._service,
                channel,
                self._notification,
                self._gap_notice,
                since=since,
                subscribers_max=subscribers_max,
            )
        except BaseException as error:
            if charge is not None and not was_stored(error):
                charge.give_back()
            raise

    @asynccontextmanager
    async def atomic_subscribe(
        self, connection: Connection, channel: Any, *, history: History | None = None, subscribers_max: int = 0
    ) -> AsyncIterator[None]:
        """Subscribe a connection, and hold its publications until the end of the block and the reply.

        So a client that receives a list (of members) is notified of every later change, and of none that the list
        includes. In the block: call `Rosters.enter` or `Rosters.census`, and `knows` with its version; then return
        the reply at once. If the block raises, the connection is unsubscribed. All else: as `subscribe`.
        """
        await self._cluster.channels.subscribe(
            connection,
            self._service,
            channel,
            self._notification,
            is_held=True,
            is_kept=history is not None,
            subscribers_max=subscribers_max,
        )
        try:
            yield
        except BaseException:
            with suppress(NotSubscribed):  # it unsubscribed meanwhile
                self.unsubscribe(connection, channel)
            raise
        if not self.is_subscribed(connection, channel):  # `Service.end_subscription` ended it during the block
            raise NotSubscribed
        # after the reply, which the caller writes in this loop iteration
        asyncio.get_running_loop().call_soon(self._cluster.channels.release, connection, self._service, channel)

    @asynccontextmanager
    async def reading(self, connection: Connection, channel: Any) -> AsyncIterator[None]:
        """Hold the publications of a connection, if it is subscribed, while a list for it is read.

        The block is the same as for `atomic_subscribe`; nothing is subscribed or unsubscribed.
        """
        is_held = self._cluster.channels.hold(connection, self._service, channel)
        try:
            yield
        finally:
            if is_held:
                asyncio.get_running_loop().call_soon(self._cluster.channels.release, connection, self._service, channel)

    def knows(self, connection: Connection, channel: Any, version: int) -> None:
        """Record that a subscriber receives a list of this version, of `Entered` or `Rosters.census`.

        It will not receive notices that the list includes. Write the reply at once.
        """
        self._cluster.channels.knows(connection, self._service, channel, version)

    def unsubscribe(self, connection: Connection, channel: Any) -> None:
        """Undo `subscribe`, and forget the token that permitted it. Raises NotSubscribed, InvalidChannel."""
        self._cluster.auth.grants.drop(connection, channel_key(self._service, channel))
        self._cluster.channels.unsubscribe(connection, self._service, channel)

    def suspend(self, connection: Connection, channel: Any) -> None:
        """Undo `subscribe`, and keep what permitted it, for a caller that subscribes again without an await in between.

        Raises NotSubscribed, InvalidChannel.
        """
        self._cluster.channels.suspend(connection, self._service, channel)

    def is_subscribed(self, connection: Connection, channel: Any) -> bool:
        """True if the connection is subscribed to the channel, or is subscribing."""
        return self._cluster.channels.is_subscribed(connection, self._service, channel)

    async def listen(
        self, channel: Any, listener: Listener, *, history: History | None = None, on_gap: OnGap | None = None
    ) -> None:
        """Call a local callback for a channel's publications: for services that inspect what they relay.

        listener: called with the publications of one read, in order, on the event loop; one per channel. history: the
        channel's retention; publications with a position then arrive once and in order, and on_gap is called, between
        two calls of the listener, if publications are missing from history. Raises AlreadySubscribed, InvalidChannel,
        BrokerUnavailable.
        """
        is_kept = history is not None
        await self._cluster.channels.listen(self._service, channel, listener, is_kept=is_kept, on_gap=on_gap)

    def unlisten(self, channel: Any) -> None:
        """Undo `listen`. Raises NotSubscribed, InvalidChannel."""
        self._cluster.channels.unlisten(self._service, channel)
