"""ControlBackend: the backend ends subscriptions and connections of clients, on all nodes, and learns who was reached.

Each command names its clients by any of `identity`, `connection` (an id) and `channel` with `service`; all of them must
match. The reply, within a second: {"nodes": [{"node", "connections"}...], "missing": [NODE...], "connections": N}.
Nodes that are missing have not answered yet; they obey when they are back, if that is within a minute.

Every call writes one line to the log `snorky.audit`: by whose key, what, on whom, with which outcome.
"""

from typing import Any, Final, Literal

import structlog

from snorky.gateway import CloseCode, Reached, SnorkyError, channel_name, identity_name
from snorky.services.rpc import Request, RPCError, RPCService, rpc_command

__all__ = ["ControlBackend"]

REASON_MAX_BYTES: Final = 123  # of a close frame, RFC 6455 5.5.1
CONNECTION_MAX_BYTES: Final = 255
ABSENT: Final = object()  # a channel may be null

_log = structlog.get_logger("snorky.audit")


class ControlBackend(RPCService):
    """Commands `disconnect` and `unsubscribe`."""

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
            raise _invalid()
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

    def _order(
        self, identity: Any, connection: Any, channel: Any, service: Any, reason: Any, *, needs_service: bool
    ) -> dict[str, Any]:
        """Check the parameters. Raises RPCError, InvalidChannel."""
        if identity is None and connection is None and channel is ABSENT:
            raise RPCError("Name an identity, a connection or a channel", "invalid_params")
        if not isinstance(service, str) or (needs_service and self.cluster.find_service(service) is None):
            raise RPCError("There is no such service", "invalid_params")
        return {
            "service": service if needs_service else "",
            "identity": None if identity is None else _name(identity),
            "connection_id": None if connection is None else _text(connection, CONNECTION_MAX_BYTES),
            "channel": None if channel is ABSENT else channel_name(channel),
            "reason": _text(reason, REASON_MAX_BYTES),
        }

    async def _given(
        self, request: Request, command: Literal["disconnect", "unsubscribe"], order: dict[str, Any]
    ) -> dict[str, Any]:
        """Give an order to all nodes; count and log it with its outcome."""
        outcome, reached = "internal", Reached({}, [])
        try:
            reached = await self.cluster.control.give(command, **order)
            outcome = "incomplete" if reached.missing else "ok"
        except SnorkyError as error:
            outcome = error.code
            raise
        finally:
            whom = {name: order[name] for name in ("identity", "connection_id", "channel") if order[name] is not None}
            results: dict[str, Any] = {"connections": reached.connections, "nodes": len(reached.nodes)}
            if reached.missing:
                results["missing"] = " ".join(reached.missing)
            self._audit(request, outcome, service=order["service"], **whom, **results)
        nodes = [{"node": node, "connections": count} for node, count in reached.nodes.items()]
        return {"nodes": nodes, "missing": reached.missing, "connections": reached.connections}

    def _refuse(self, request: Request, error: BaseException) -> None:
        if isinstance(error, SnorkyError) and error.code in ("invalid_params", "invalid_channel", "unknown_command"):
            self._audit(request, error.code)  # all others were logged when the order was given
        super()._refuse(request, error)

    def _audit(self, request: Request, outcome: str, **facts: Any) -> None:
        self.cluster.metrics.control_calls.labels(request.command, outcome).inc()
        _log.info("control", by=request.backend_key or "none", command=request.command, outcome=outcome, **facts)


def _name(identity: Any) -> str:
    try:
        return identity_name(identity)
    except ValueError:
        raise _invalid() from None


def _text(value: Any, max_bytes: int) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value.encode()) <= max_bytes:
        raise _invalid()
    return value


def _invalid() -> RPCError:
    return RPCError("Invalid params", "invalid_params")
