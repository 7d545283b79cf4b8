"""ServiceChannels: the channels of the services of one node, by their JSON names and with JSON payloads.

Below it, channels are keys and payloads are bytes. It also applies the limits of subscribers and publishers.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

from snorky.gateway.config.settings import Limits
from snorky.gateway.connection.connection import Connection
from snorky.gateway.contracts.broker import Broker
from snorky.gateway.contracts.history import History, HistoryStore, Recovery
from snorky.gateway.delivery.channels import Channels
from snorky.gateway.delivery.fan_out import Fanout, Listener, OnGap
from snorky.gateway.delivery.hub import Hub
from snorky.gateway.errors import ConfigurationError, ConnectionClosed, LimitExceeded
from snorky.gateway.metrics import Metrics
from snorky.gateway.presence.cluster_counts import ClusterCounts
from snorky.gateway.protocol.codec import Verbatim, channel_key, channel_name, encode_json
from snorky.gateway.protocol.publication import Position, Selector, TooLarge, write_addressed, write_described
from snorky.gateway.protocol.splicing import Template
from snorky.gateway.sdk.control_views import channel_counts, channels_page

__all__ = ["GapNotice", "Notification", "ServiceChannels"]

Notification = Callable[[Any], Any]  # channel -> message to its subscribers, with PAYLOAD in place of the payload
GapNotice = Callable[[Any, Position], Any]  # channel, next position -> message to clients that asked to recover


class ServiceChannels:
    """Publishes, subscribes and listens for services. `Topics` gives each service its own part of it.

    history_store: None = this node has no history. has_presence_events: whether subscribers of a service's channel
    receive join and leave events. is_open: whether a connection is a client of the node. counts: of subscriptions on
    all nodes.
    """

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        fanout: Fanout,
        channels: Channels,
        history_store: HistoryStore | None,
        *,
        limits: Limits,
        metrics: Metrics,
        has_presence_events: Callable[[str, Any], bool],
        is_open: Callable[[Connection], bool],
        counts: ClusterCounts,
    ) -> None:
        self._hub = hub
        self._broker = broker
        self._fanout = fanout
        self._channels = channels
        self._history_store = history_store
        self._limits = limits
        self._metrics = metrics
        self._has_presence_events = has_presence_events
        self._is_open = is_open
        self._counts = counts

    def publish(
        self, service: str, channel: Any, payload: Any, *, to: Selector | None = None, attributes: bytes = b""
    ) -> asyncio.Future[int]:
        """Publish to all subscribers of a service's channel, on all nodes. See Topics.publish."""
        key = channel_key(service, channel)
        data = self._encode(payload)
        if to is not None:
            data = write_addressed(data, to)
        elif attributes:
            data = write_described(data, attributes)
        self._metrics.publications_published.inc()
        if key in self._hub:
            self._fanout.expect(key, data)
        return self._broker.publish(key, data)

    def publish_kept(
        self,
        service: str,
        channel: Any,
        payload: Any,
        history: History,
        *,
        once: str | None = None,
        to: Selector | None = None,
        attributes: bytes = b"",
    ) -> asyncio.Future[Position]:
        """Publish to a channel with a history. See Topics.publish."""
        key = channel_key(service, channel)
        data = self._encode(payload)
        self._metrics.publications_published.inc()
        return self.history_store.publish(key, data, history, once=once, to=to, attributes=attributes)

    def publish_once(
        self, service: str, channel: Any, payload: Any, once: str, *, attributes: bytes = b""
    ) -> asyncio.Future[None]:
        """Publish with an idempotency key to a channel without a history. See Topics.publish."""
        key = channel_key(service, channel)
        data = self._encode(payload)
        if attributes:
            data = write_described(data, attributes)
        self._metrics.publications_published.inc()
        return self.history_store.publish_once(key, data, once)

    async def subscribe(
        self,
        connection: Connection,
        service: str,
        channel: Any,
        notification: Notification,
        *,
        is_held: bool = False,
        is_kept: bool = False,
        subscribers_max: int = 0,
    ) -> None:
        """Subscribe a connection of this node. See Topics.subscribe. is_held: see Topics.atomic_subscribe."""
        key = self._check_subscriber(connection, channel_key(service, channel))
        async with self._counted(connection, key, subscribers_max):
            await self._channels.subscribe(
                connection,
                key,
                lambda: Template(service, notification(channel)),
                is_held=is_held,
                is_kept=is_kept,
                has_presence=self._has_presence_events(service, channel),
            )

    async def recover(
        self,
        connection: Connection,
        service: str,
        channel: Any,
        notification: Notification,
        gap_notice: GapNotice,
        *,
        since: Position | None,
        subscribers_max: int = 0,
    ) -> Recovery:
        """Subscribe a connection, and return what it missed. See Topics.recover."""
        key = self._check_subscriber(connection, channel_key(service, channel))
        async with self._counted(connection, key, subscribers_max):
            return await self._channels.recover(
                connection,
                key,
                lambda: Template(service, notification(channel)),
                lambda position: {"service": service, "message": gap_notice(channel, position)},
                since,
                has_presence=self._has_presence_events(service, channel),
            )

    def hold(self, connection: Connection, service: str, channel: Any) -> bool:
        """Buffer a subscriber's publications until `release`. False = not subscribed, or held. See Topics.reading."""
        return self._hub.hold(connection, channel_key(service, channel))

    def knows(self, connection: Connection, service: str, channel: Any, version: int) -> None:
        """Record which list a subscriber receives. See Topics.knows."""
        found, key = self._hub.get(channel_key(service, channel)), channel_key(service, channel)
        if found is not None and key in connection.channels:
            found.knows(connection, version, monotonic())

    def release(self, connection: Connection, service: str, channel: Any) -> None:
        """Write the publications held for a connection, and stop holding. See Topics.atomic_subscribe."""
        held = self._hub.release(connection, channel_key(service, channel))
        if held:
            connection.write_reply(b"".join(held))  # `batches` has limited it to the outbox's size

    def unsubscribe(self, connection: Connection, service: str, channel: Any) -> None:
        """Undo `subscribe`. See Topics.unsubscribe."""
        self._channels.remove(connection, channel_key(service, channel))

    def suspend(self, connection: Connection, service: str, channel: Any) -> None:
        """Undo `subscribe`, but count the subscription on. See Topics.suspend."""
        key = channel_key(service, channel)
        with self._counts.kept(connection, key):
            self._channels.remove(connection, key)

    def is_subscribed(self, connection: Connection, service: str, channel: Any) -> bool:
        """True if a connection is subscribed to a channel, or is subscribing."""
        return channel_key(service, channel) in connection.channels

    async def remove_history(self, service: str, channel: Any) -> None:
        """Remove a channel's retained publications. Raises as HistoryStore.remove, and InvalidChannel."""
        await self.history_store.remove(channel_key(service, channel))

    def watch(self, on_channel: Callable[[str, bool], None]) -> None:
        """Call a function with the key of each channel that begins (True) or ends (False) on this node."""
        self._hub.on_channel = on_channel

    def is_followed(self, service: str, channel: Any) -> bool:
        """True if a connection of this node is subscribed to a channel, or is subscribing."""
        return channel_key(service, channel) in self._hub

    def subscribers(self, key: str) -> list[Connection]:
        """Return the connections of this node that are subscribed to a channel, or are subscribing."""
        return self._hub.subscribers(key)

    async def page(self, service: str, pattern: str, after: str, limit: int) -> list[dict[str, Any]]:
        """Count the subscribers of a service's channels on this node, page by page. See `control_views`."""
        return await channels_page(self._hub.keys(), service, pattern, after, limit, self._hub.count)

    def counts(self, service: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """Count the subscribers of these channels of a service on this node. See `control_views`."""
        return channel_counts(service, names, self._hub.count)

    async def listen(
        self, service: str, channel: Any, listener: Listener, *, is_kept: bool = False, on_gap: OnGap | None = None
    ) -> None:
        """Call a local callback for a channel's publications. See Topics.listen."""
        await self._channels.listen(channel_key(service, channel), listener, is_kept=is_kept, on_gap=on_gap)

    def unlisten(self, service: str, channel: Any) -> None:
        """Undo `listen`. See Topics.unlisten."""
        self._channels.unlisten(channel_key(service, channel))

    @property
    def history_store(self) -> HistoryStore:
        """The history of channels. Raises ConfigurationError: this node has none."""
        if self._history_store is None:
            raise ConfigurationError("this node has no history store: topics with history need one")
        return self._history_store

    def promised(self, service: str, channel: Any, own: History | None) -> History | None:
        """Return a channel's retention by the rules of all nodes. See Topics.promised."""
        history_store = self._history_store
        if history_store is None or not history_store.has_other_rules:
            return own
        return history_store.promised(service, channel_name(channel), own)

    @asynccontextmanager
    async def _counted(self, connection: Connection, key: str, subscribers_max: int) -> AsyncIterator[None]:
        """Count a subscription that the block makes. Raises as ClusterCounts.enter_channel."""
        await self._counts.enter_channel(connection, key, subscribers_max=subscribers_max)
        try:
            yield
        except BaseException:
            if key not in connection.channels:
                self._counts.leave_channel(connection, key)
            raise

    def _encode(self, payload: Any) -> bytes:
        """Encode a payload to publish. Raises InvalidMessage; TooLarge: nodes would drop it."""
        data = payload.encoded if isinstance(payload, Verbatim) else encode_json(payload)
        if len(data) > self._limits.payload_max_bytes:
            self._metrics.limit_hits.labels("payload_max_bytes").inc()
            raise TooLarge(f"Message larger than {self._limits.payload_max_bytes} bytes")
        return data

    def _check_subscriber(self, connection: Connection, key: str) -> str:
        """Check that a connection may subscribe to one more channel; returns the key."""
        if connection.is_closed or not self._is_open(connection):
            raise ConnectionClosed  # or a backend's request: no `disconnect` would remove the subscription
        if len(connection.channels) >= self._limits.channels_per_connection and key not in connection.channels:
            self._metrics.limit_hits.labels("channels_per_connection").inc()
            raise LimitExceeded("channels_per_connection", "Too many channels")
        return key
