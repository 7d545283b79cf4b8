"""Control: a backend begins and ends subscriptions of clients, on all nodes, and asks who is there.

control = Control(SnorkyBackend(SnorkyHTTPTransport("http://127.0.0.1:8003/backend", key="...")))
reached = control.unsubscribe(identity="ann", channel="shop:7")
reached.connections, reached.missing

`disconnect`, `unsubscribe` and `refresh` name clients by any of identity, connection (an id) and channel; `subscribe`
by identity, connection and on_channel. All that are given must match.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from snorky.client.aio.backend import AsyncSnorkyBackend
from snorky.client.backend import SnorkyBackend
from snorky.client.errors import TransportError
from snorky.client.http.transport import is_count

__all__ = ["AsyncControl", "Control", "Page", "Reached"]

ABSENT: Final[Any] = object()  # a channel may be None: null


@dataclass(frozen=True, slots=True)
class Reached:
    """The connections reached. nodes: the gateway's nodes that have done it, with the number of their connections.

    missing: the nodes that had not answered within a second. They do it when they are back, if that is within a minute.
    """

    nodes: Mapping[str, int]
    missing: tuple[str, ...]

    @property
    def connections(self) -> int:
        """The number of connections that were reached."""
        return sum(self.nodes.values())


@dataclass(frozen=True, slots=True)
class Page:
    """One page of an answer. entries: dicts; of presence, identities. next: for `after`; None = it is the last page.

    missing: the nodes that had not answered within a second: their entries are not in the page.
    """

    entries: list[Any]
    missing: tuple[str, ...]
    next: str | None


class Control:
    """Calls the gateway's service `control`. backend: its calls are repeated only if it was made with retry=True.

    name: the service's name. Every call raises SnorkyError: refused, or Redis does not answer ("unavailable");
    TransportError: no valid reply.
    """

    def __init__(self, backend: SnorkyBackend, name: str = "control") -> None:
        self._backend = backend
        self._name = name

    def disconnect(
        self,
        *,
        identity: str | int | None = None,
        connection: str | None = None,
        channel: Any = ABSENT,
        service: str = "pubsub",
        reconnect: bool = False,
        reason: str | None = None,
    ) -> Reached:
        """Close connections with 4500; with 4000 if reconnect is true, after which clients reconnect.

        service: that of the channel. reason: up to 123 bytes, for the close frame.
        """
        params = _params(identity, connection, channel, service, reason) | {"reconnect": reconnect}
        return _reached(self._backend.call(self._name, "disconnect", **params))

    def subscribe(
        self,
        channel: Any,
        *,
        identity: str | int | None = None,
        connection: str | None = None,
        on_channel: Any = ABSENT,
        service: str = "pubsub",
        recover: bool | str = True,
        expires_in_s: float | None = None,
    ) -> Reached:
        """Subscribe connections to a channel of a service, whatever the gateway's rules permit. Clients are notified.

        With only an identity, its later connections are subscribed too, until `unsubscribe` or for expires_in_s.
        recover: True = with positions, if the channel has a history; a position = the messages after it come first.
        """
        params = _subscribing(channel, identity, connection, on_channel, service, recover, expires_in_s)
        return _reached(self._backend.call(self._name, "subscribe", **params))

    def unsubscribe(
        self,
        *,
        identity: str | int | None = None,
        connection: str | None = None,
        channel: Any = ABSENT,
        service: str = "pubsub",
        reason: str | None = None,
    ) -> Reached:
        """End subscriptions to a channel of a service; without a channel, to all of its channels. Clients are notified.

        reason: up to 123 bytes, for the notification.
        """
        params = _params(identity, connection, channel, service, reason)
        return _reached(self._backend.call(self._name, "unsubscribe", **params))

    def refresh(
        self,
        *,
        identity: str | int | None = None,
        connection: str | None = None,
        channel: Any = ABSENT,
        service: str = "pubsub",
        claims: Mapping[str, Any] | None = None,
        expires_in_s: float | None = None,
    ) -> Reached:
        """Ask rules and hooks again what connections may do; end what they may not do any more.

        claims: in place of those of their tokens. expires_in_s: the connections are closed with 4501 then.
        """
        params = _params(identity, connection, channel, service, None) | _refreshing(claims, expires_in_s)
        return _reached(self._backend.call(self._name, "refresh", **params))

    def nodes(self, *, after: str | None = None, limit: int = 100) -> Page:
        """List the gateway's nodes, with their numbers of connections, subscriptions and channels."""
        return _page("nodes", self._backend.call(self._name, "nodes", **_from(after, limit)))

    def connections(self, identity: str | int, *, after: str | None = None, limit: int = 100) -> Page:
        """List the connections of an identity."""
        params = {"identity": identity, **_from(after, limit)}
        return _page("connections", self._backend.call(self._name, "connections", **params))

    def channels(
        self, pattern: str = "*", *, service: str = "pubsub", after: str | None = None, limit: int = 100
    ) -> Page:
        """List the channels of a service that have subscribers and match a pattern, with their number."""
        params = {"pattern": pattern, "service": service, **_from(after, limit)}
        return _page("channels", self._backend.call(self._name, "channels", **params))

    def presence(self, channel: Any, *, service: str = "pubsub", after: str | None = None, limit: int = 100) -> Page:
        """List the identities in a channel's presence, room or document."""
        params = {"channel": channel, "service": service, **_from(after, limit)}
        return _page("members", self._backend.call(self._name, "presence", **params))

    def history_remove(self, channel: Any, *, service: str = "pubsub") -> None:
        """Remove the messages that a channel retains; its subscribers notice nothing."""
        self._backend.call(self._name, "historyRemove", channel=channel, service=service)


class AsyncControl:
    """Control for asyncio; see there."""

    def __init__(self, backend: AsyncSnorkyBackend, name: str = "control") -> None:
        self._backend = backend
        self._name = name

    async def disconnect(
        self,
        *,
        identity: str | int | None = None,
        connection: str | None = None,
        channel: Any = ABSENT,
        service: str = "pubsub",
        reconnect: bool = False,
        reason: str | None = None,
    ) -> Reached:
        """Close connections; as Control.disconnect."""
        params = _params(identity, connection, channel, service, reason) | {"reconnect": reconnect}
        return _reached(await self._backend.call(self._name, "disconnect", **params))

    async def subscribe(
        self,
        channel: Any,
        *,
        identity: str | int | None = None,
        connection: str | None = None,
        on_channel: Any = ABSENT,
        service: str = "pubsub",
        recover: bool | str = True,
        expires_in_s: float | None = None,
    ) -> Reached:
        """Subscribe connections; as Control.subscribe."""
        params = _subscribing(channel, identity, connection, on_channel, service, recover, expires_in_s)
        return _reached(await self._backend.call(self._name, "subscribe", **params))

    async def unsubscribe(
        self,
        *,
        identity: str | int | None = None,
        connection: str | None = None,
        channel: Any = ABSENT,
        service: str = "pubsub",
        reason: str | None = None,
    ) -> Reached:
        """End subscriptions; as Control.unsubscribe."""
        params = _params(identity, connection, channel, service, reason)
        return _reached(await self._backend.call(self._name, "unsubscribe", **params))

    async def refresh(
        self,
        *,
        identity: str | int | None = None,
        connection: str | None = None,
        channel: Any = ABSENT,
        service: str = "pubsub",
        claims: Mapping[str, Any] | None = None,
        expires_in_s: float | None = None,
    ) -> Reached:
        """Look again at what connections may do; as Control.refresh."""
        params = _params(identity, connection, channel, service, None) | _refreshing(claims, expires_in_s)
        return _reached(await self._backend.call(self._name, "refresh", **params))

    async def nodes(self, *, after: str | None = None, limit: int = 100) -> Page:
        """List the gateway's nodes, with their numbers of connections, subscriptions and channels."""
        return _page("nodes", await self._backend.call(self._name, "nodes", **_from(after, limit)))

    async def connections(self, identity: str | int, *, after: str | None = None, limit: int = 100) -> Page:
        """List the connections of an identity."""
        params = {"identity": identity, **_from(after, limit)}
        return _page("connections", await self._backend.call(self._name, "connections", **params))

    async def channels(
        self, pattern: str = "*", *, service: str = "pubsub", after: str | None = None, limit: int = 100
    ) -> Page:
        """List the channels of a service that have subscribers and match a pattern, with their number."""
        params = {"pattern": pattern, "service": service, **_from(after, limit)}
        return _page("channels", await self._backend.call(self._name, "channels", **params))

    async def presence(
        self, channel: Any, *, service: str = "pubsub", after: str | None = None, limit: int = 100
    ) -> Page:
        """List the identities in a channel's presence, room or document."""
        params = {"channel": channel, "service": service, **_from(after, limit)}
        return _page("members", await self._backend.call(self._name, "presence", **params))

    async def history_remove(self, channel: Any, *, service: str = "pubsub") -> None:
        """Remove the messages that a channel retains; its subscribers notice nothing."""
        await self._backend.call(self._name, "historyRemove", channel=channel, service=service)


def _params(identity: Any, connection: Any, channel: Any, service: str, reason: str | None) -> dict[str, Any]:
    named = {"identity": identity, "connection": connection, "reason": reason}
    params = {name: value for name, value in named.items() if value is not None}
    return params | {"service": service} | ({} if channel is ABSENT else {"channel": channel})


def _subscribing(
    channel: Any,
    identity: Any,
    connection: Any,
    on_channel: Any,
    service: str,
    recover: bool | str,
    expires_in_s: float | None,
) -> dict[str, Any]:
    params = _params(identity, connection, ABSENT, service, None) | {"channel": channel, "recover": recover}
    if on_channel is not ABSENT:
        params["onChannel"] = on_channel
    return params if expires_in_s is None else params | {"expiresInS": expires_in_s}


def _refreshing(claims: Mapping[str, Any] | None, expires_in_s: float | None) -> dict[str, Any]:
    params: dict[str, Any] = {} if claims is None else {"claims": dict(claims)}
    return params if expires_in_s is None else params | {"expiresInS": expires_in_s}


def _reached(data: Any) -> Reached:
    match data:
        case {"nodes": list(nodes), "missing": list(missing)}:
            if all(isinstance(node, str) for node in missing) and all(map(_is_node, nodes)):
                return Reached({each["node"]: each["connections"] for each in nodes}, tuple(missing))
    raise TransportError(
        "Invalid reply: not nodes and connections", "invalid_reply", may_have_happened=True, status=200
    )


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("node"), str) and is_count(value.get("connections"))


def _from(after: str | None, limit: int) -> dict[str, Any]:
    return {"limit": limit} | ({} if after is None else {"after": after})


def _page(name: str, data: Any) -> Page:
    if isinstance(data, dict):
        entries, missing, following = data.get(name), data.get("missing", []), data.get("next")
        if isinstance(entries, list) and isinstance(missing, list) and isinstance(following, str | None):
            return Page(entries, tuple(map(str, missing)), following)
    raise TransportError("Invalid reply: not a page", "invalid_reply", may_have_happened=True, status=200)
