"""Service: what answers messages addressed to its name. Cluster: what it may ask for.

A service lives in a ServiceRegistry and knows the cluster only through the methods below, so one written
for a single process works on any number of nodes. Subclass `Service` for a protocol of your own, or
`services.rpc.RPCService` for commands with replies.

Rules for authors:
- Methods run on the event loop: what blocks goes to a thread (`asyncio.to_thread`).
- Messages of one connection come one after another: the next waits until the awaitable that `on_message`
  returned is done. Other connections do not wait.
- State of one client goes into `connection.data[self.name]`, never into the service: the client may be on
  another node tomorrow.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from gateway.codec import PAYLOAD
from gateway.connection import Connection
from gateway.errors import ConfigurationError
from gateway.metrics import Metrics

__all__ = ["Cluster", "Notification", "Service", "Topics"]

_NAME = re.compile(r"[a-z0-9_-]+")

Notification = Callable[[Any], Any]  # channel -> what its subscribers receive, with PAYLOAD where the payload stands


class Cluster(Protocol):
    """What the nodes do together, as a service sees it. `gateway.node.Node` fulfils it."""

    @property
    def node_id(self) -> str:
        """This node's name in the cluster."""

    @property
    def metrics(self) -> Metrics:
        """Where to count."""

    def publish(self, service: str, channel: Any, payload: Any) -> asyncio.Future[int]:
        """Publish to all subscribers of a service's channel, on all nodes. See Topics.publish."""

    async def subscribe(self, connection: Connection, service: str, channel: Any, notification: Notification) -> None:
        """Subscribe a connection of this node. See Topics.subscribe."""

    def unsubscribe(self, connection: Connection, service: str, channel: Any) -> None:
        """Undo it. See Topics.unsubscribe."""

    def is_subscribed(self, connection: Connection, service: str, channel: Any) -> bool:
        """True if it is subscribed, or about to be."""


class Topics:
    """The channels of one service: publish to them, subscribe connections to them."""

    __slots__ = ("_cluster", "_notification", "_service")

    def __init__(self, cluster: Cluster, service: str, notification: Notification) -> None:
        self._cluster = cluster
        self._service = service
        self._notification = notification

    def publish(self, channel: Any, payload: Any) -> asyncio.Future[int]:
        """Publish to all subscribers of a channel, on all nodes. channel, payload: any JSON entity.

        Await the future to know that Redis has it; its order among this node's publications is settled
        either way. Returns the number of nodes that hear the channel. Raises InvalidChannel and
        InvalidMessage at once; the future raises BrokerUnavailable.
        """
        return self._cluster.publish(self._service, channel, payload)

    async def subscribe(self, connection: Connection, channel: Any) -> None:
        """Subscribe a connection; on return, whatever is published from now on reaches it.

        Raises AlreadySubscribed, LimitExceeded, InvalidChannel, BrokerUnavailable (nothing is left behind),
        ConnectionClosed.
        """
        await self._cluster.subscribe(connection, self._service, channel, self._notification)

    def unsubscribe(self, connection: Connection, channel: Any) -> None:
        """Undo `subscribe`. Raises NotSubscribed, InvalidChannel."""
        self._cluster.unsubscribe(connection, self._service, channel)

    def is_subscribed(self, connection: Connection, channel: Any) -> bool:
        """True if the connection subscribes to the channel, or is about to."""
        return self._cluster.is_subscribed(connection, self._service, channel)


class Service(ABC):
    """Answers the messages addressed to `name`. name: [a-z0-9_-]+, unique in its registry."""

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"service name {name!r}: use lower-case letters, digits, '-' and '_'")
        self.name = name
        self._cluster: Cluster | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def topics(self) -> "Topics":
        """The channels of this service."""
        return Topics(self.cluster, self.name, self.notification)

    @property
    def cluster(self) -> Cluster:
        """The cluster; there once the registry belongs to a node."""
        if self._cluster is None:
            raise ConfigurationError(f"{self!r} is not on a node yet: give its registry to one (Node.attach)")
        return self._cluster

    def bind(self, cluster: Cluster) -> None:
        """Learn which cluster this service is part of, for good. Raises ConfigurationError: it is another one's."""
        if self._cluster is not None and self._cluster is not cluster:
            raise ConfigurationError(f"{self!r} is on another node already; make another one")
        self._cluster = cluster

    def on_connect(self, connection: Connection) -> None:  # noqa: B027 - an optional hook
        """Know that a client has come."""

    def on_disconnect(self, connection: Connection) -> None:  # noqa: B027 - an optional hook
        """Know that a client has gone. Its subscriptions end by themselves; nothing can be sent to it."""

    @abstractmethod
    def on_message(self, connection: Connection, message: Any) -> Awaitable[None] | None:
        """Answer one message. message: any JSON entity, already checked.

        A plain method answers at once; a coroutine is awaited before the connection's next message. An
        error of gateway.errors is told to the client, any other is logged and told as `Internal error`.
        """

    def notification(self, channel: Any) -> Any:
        """Shape what subscribers of a channel receive: a JSON entity with `PAYLOAD` where the payload stands."""
        return PAYLOAD

    def send(self, connection: Connection, message: Any) -> None:
        """Send one message to one connection. message: any JSON entity."""
        connection.send({"service": self.name, "message": message})
