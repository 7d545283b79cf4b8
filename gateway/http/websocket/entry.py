"""Entry: counts and authenticates a client before its connection exists. For handshakes, SockJS and event streams."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from snorky.gateway.auth.sessions import Session
from snorky.gateway.errors import BrokerUnavailable, InvalidToken, LimitExceeded
from snorky.gateway.http.websocket.admission import Admission
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.node import Node
from snorky.gateway.presence.cluster_counts import Unit

__all__ = ["Entry", "enter", "refuse_draining"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A client that may connect. session: None = anonymous. refusal: its token is not accepted.

    units: that it counts against the limits over all nodes.
    """

    node: Node
    admission: Admission
    address: str
    session: Session | None = None
    refusal: InvalidToken | None = None
    units: Sequence[Unit] = ()

    def leave(self) -> None:
        """Undo `enter`, if no connection is made."""
        self.admission.leave(self.address)
        self.node.cluster_limits.counts.leave(self.units)
        if self.session is not None:
            self.node.auth.leave(self.session)


async def enter(
    node: Node, admission: Admission, address: str, login: Callable[[], Awaitable[Session | None]]
) -> Entry:
    """Count a client on this node, authenticate it, and count it on all nodes. address: the client's.

    The caller makes a connection, which binds the session and the units, or calls `Entry.leave`. At its end, the
    connection calls `Admission.leave`. Raises HandshakeRefused, and what login raises, except InvalidToken.
    """
    admission.enter(address)
    session: Session | None = None
    try:
        session = await login()
        units = await _count(node, None if session is None else session.who.identity, address)
    except InvalidToken as error:
        return Entry(node, admission, address, refusal=error)
    except BaseException:
        admission.leave(address)
        if session is not None:
            node.auth.leave(session)
        raise
    return Entry(node, admission, address, session, units=units)


def refuse_draining(node: Node) -> None:
    """Raise HandshakeRefused if a node accepts no more clients."""
    if node.is_draining:
        raise HandshakeRefused(503, "draining", "This node is going away: try another one")


async def _count(node: Node, identity: str | None, address: str) -> Sequence[Unit]:
    """Count a client against the limits over all nodes. identity: None = anonymous.

    Raises HandshakeRefused: too many connections, or Redis does not answer.
    """
    try:
        return await node.cluster_limits.counts.enter(identity, address)
    except LimitExceeded as error:
        raise HandshakeRefused(429, "cluster_connections", str(error)) from None
    except BrokerUnavailable:
        raise HandshakeRefused(503, "limits", "Limits cannot be checked for the moment") from None
