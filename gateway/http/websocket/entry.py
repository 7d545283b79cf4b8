"""Counts a client against the limits over all nodes before its connection exists, for handshakes and SockJS."""

from collections.abc import Sequence

from snorky.gateway.errors import BrokerUnavailable, LimitExceeded
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.node import Node
from snorky.gateway.presence.cluster_counts import Unit

__all__ = ["count_client"]


async def count_client(node: Node, identity: str | None, address: str) -> Sequence[Unit]:
    """Count a client. The caller must then call `bind` or `leave` of the node's counts. identity: None = anonymous.

    Raises HandshakeRefused: too many connections, or Redis does not answer.
    """
    try:
        return await node.cluster_limits.counts.enter(identity, address)
    except LimitExceeded as error:
        raise HandshakeRefused(429, "cluster_connections", str(error)) from None
    except BrokerUnavailable:
        raise HandshakeRefused(503, "limits", "Limits cannot be checked for the moment") from None
