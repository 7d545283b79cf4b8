"""ControlBackend: the backend begins and ends subscriptions of clients and ends connections, on all nodes.

Each command names its clients by any of `identity`, `connection` (an id) and `channel` with `service` (in `subscribe`:
`onChannel`); all of them must match. The reply, within a second:

    {"nodes": [{"node", "connections"}...], "missing": [NODE...], "connections": N}

Nodes that are missing have not answered yet; they obey when they are back, if that is within a minute.

`snorky.services.control_views` has the commands that only look, and the audit log.
"""

from typing import Any, Final, Literal

from snorky.gateway import CloseCode, channel_name
from snorky.services.control_views import ControlViews, invalid, name_of
from snorky.services.pubsub.parameters import recovery_of
from snorky.services.pubsub.service import PubSubService
from snorky.services.rpc import Request, RPCError, rpc_command

__all__ = ["ControlBackend"]

REASON_MAX_BYTES: Final = 123  # of a close frame, RFC 6455 5.5.1
CONNECTION_MAX_BYTES: Final = 255
SECONDS_MAX: Final = 315_360_000  # ten years
ABSENT: Final = object()  # a channel may be null


class ControlBackend(ControlViews):
    """Commands `disconnect`, `subscribe`, `unsubscribe` and `refresh`, and those of ControlViews."""

    def __init__(self, name: str = "control") -> None:
        super().__init__(name)

    @rpc_command
    async def disconnect(
        self,
        request: Request,
        identity: Any = None,
        connection: Any = None,
        channel: Any = ABSENT,
        service: Any = "pubsub",
        reconnect: Any = False,
        reason: Any = "Disconnected",
    ) -> dict[str, Any]:
        """Close connections with 4500; with 4000 if reconnect is true, after which clients reconnect."""
        order = self._order(identity, connection, channel, service, reason, needs_service=channel is not ABSENT)
        if not isinstance(reconnect, bool):
            raise invalid()
        order["code"] = int(CloseCode.RECONNECT if reconnect else CloseCode.DISCONNECTED)
        return await self._given(request, "disconnect", order)

    @rpc_command
    async def unsubscribe(
        self,
        request: Request,
        identity: Any = None,
        connection: Any = None,
        channel: Any = ABSENT,
        service: Any = "pubsub",
        reason: Any = "Unsubscribed by the backend",
    ) -> dict[str, Any]:
        """End subscriptions to a channel of a service; without a channel, to all of its channels."""
        order = self._order(identity, connection, channel, service, reason, needs_service=True)
        return await self._given(request, "unsubscribe", order)

    @rpc_command
    async def subscribe(
        self,
        request: Request,
        channel: Any,
        identity: Any = None,
        connection: Any = None,
        onChannel: Any = ABSENT,
        service: Any = "pubsub",
        recover: Any = True,
        expiresInS: Any = None,
    ) -> dict[str, Any]:
        """Subscribe connections to a channel, whatever the rules permit. Their clients are notified.

        With only `identity`, also all its later connections, until `unsubscribe` or for expiresInS seconds. recover: as
        in a client's `subscribe`; by default with positions if the channel has a history.
        """
        order = self._order(identity, connection, onChannel, service, None, needs_service=True)
        if not isinstance(self.cluster.find_service(order["service"]), PubSubService):
            raise RPCError("This service takes no subscriptions of the backend", "invalid_params")
        recovery_of(recover)
        order |= {"target": channel_name(channel), "recover": False if recover is None else recover}
        return await self._given(request, "subscribe", order | {"expires_in_s": _seconds(expiresInS)})

    @rpc_command
    async def refresh(
        self,
        request: Request,
        identity: Any = None,
        connection: Any = None,
        channel: Any = ABSENT,
        service: Any = "pubsub",
        claims: Any = None,
        expiresInS: Any = None,
    ) -> dict[str, Any]:
        """Ask rules and hooks again what connections may do, and end what they may not do any more.

        claims: an object, in place of the present ones. expiresInS: seconds until the connections are closed.
        """
        order = self._order(identity, connection, channel, service, None, needs_service=channel is not ABSENT)
        if claims is not None and not isinstance(claims, dict):
            raise invalid()
        return await self._given(request, "refresh", order | {"claims": claims, "expires_in_s": _seconds(expiresInS)})

    def _order(
        self, identity: Any, connection: Any, channel: Any, service: Any, reason: Any, *, needs_service: bool
    ) -> dict[str, Any]:
        """Check the parameters. reason: None = the command takes none. Raises RPCError, InvalidChannel."""
        if identity is None and connection is None and channel is ABSENT:
            raise RPCError("Name an identity, a connection or a channel", "invalid_params")
        return {
            "service": self._service(service).name if needs_service else "",
            "identity": None if identity is None else name_of(identity),
            "connection_id": None if connection is None else _text(connection, CONNECTION_MAX_BYTES),
            "channel": None if channel is ABSENT else channel_name(channel),
            "reason": "" if reason is None else _text(reason, REASON_MAX_BYTES),
        }

    async def _given(
        self,
        request: Request,
        command: Literal["disconnect", "subscribe", "unsubscribe", "refresh"],
        order: dict[str, Any],
    ) -> dict[str, Any]:
        """Give an order to all nodes."""
        whom = {name: order.get(name) for name in ("service", "identity", "connection_id", "channel", "target")}
        with self._audited(request, **whom) as results:
            reached = await self.cluster.control.give(command, **order)
            results |= {"connections": reached.connections, "nodes": len(reached.nodes)}
            results["missing"] = " ".join(reached.missing)
        nodes = [{"node": node, "connections": count} for node, count in reached.nodes.items()]
        return {"nodes": nodes, "missing": reached.missing, "connections": reached.connections}


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= SECONDS_MAX:
        raise invalid()
    return float(value)


def _text(value: Any, max_bytes: int) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value.encode()) <= max_bytes:
        raise invalid()
    return value
