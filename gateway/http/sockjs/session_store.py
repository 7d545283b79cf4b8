"""SessionStore: the SockJS sessions of a node, and the lookup of the node that owns a session.

Rules:
- A session's id is registered as a name in the cluster before its client gets the open frame: any node that receives
  the client's next request finds the session, so a load balancer needs no sticky routing.
- The connection owns the name, under its node's lease: it is released with the connection, even if the node is killed.
- An ended session's id is free as soon as its client has been notified. Until the session is removed, its own node
  repeats the close frame, unless another node has a new session with this id.
- A node without a directory is alone, and knows all sessions.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from snorky.gateway.auth.sessions import Session as Login
from snorky.gateway.contracts.directory import Owner
from snorky.gateway.errors import BrokerUnavailable, CloseCode, ConfigurationError, ConnectionClosed, InvalidToken
from snorky.gateway.http.sockjs.binding import Binding, Who
from snorky.gateway.http.sockjs.session import Session, Timing
from snorky.gateway.http.websocket.admission import Admission
from snorky.gateway.http.websocket.entry import enter, refuse_draining
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.http.websocket.timer_wheel import TimerWheel
from snorky.gateway.node import Node
from snorky.gateway.presence.ownership import Ownership
from snorky.gateway.sdk.registry import ServiceRegistry

__all__ = ["MakeSession", "SessionStore"]

_ATTEMPTS: Final = 3  # another node may register or release the id between our lookup and our registration

_log = structlog.get_logger("snorky.sockjs")

MakeSession = Callable[[Node, ServiceRegistry, Timing, Callable[[], float], str, Binding], Session]


class SessionStore:
    """The sessions of one kind on one node.

    prepare: awaited before the first id is registered, so that other nodes can ask this one. kind: a part of the key of
    their names.
    """

    def __init__(
        self,
        node: Node,
        registry: ServiceRegistry,
        admission: Admission,
        timing: Timing,
        clock: Callable[[], float],
        prepare: Callable[[], Awaitable[None]],
        kind: str,
    ) -> None:
        self._node = node
        self._registry = registry
        self._admission = admission
        self._timing = timing
        self._clock = clock
        self._prepare = prepare
        self._names = f"{kind} sessions"  # no service can have this name
        self._wheel = TimerWheel(timing.beat_s)
        self._sessions: dict[str, Session] = {}
        self._ownership = _ownership_of(node)

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session_id: str) -> Session | None:
        """Return a session of this node, None = there is none."""
        return self._sessions.get(session_id)

    async def find(self, session_id: str) -> Session | Owner | None:
        """Return a session, or the other node that owns it. Raises HandshakeRefused: the lookup failed."""
        session = self.get(session_id)
        if self._ownership is None or (session is not None and not session.has_left_node):
            return session
        try:
            owner = await self._ownership.directory.find(self._names, session_id)
        except BrokerUnavailable:
            if session is not None:
                return session
            raise _unavailable() from None
        if owner is None or owner.node_id == self._node.node_id:
            return self.get(session_id)  # it may have been opened meanwhile, or is just ending
        return owner

    async def find_or_open(
        self,
        session_id: str,
        remote_ip: str,
        login: Callable[[], Awaitable[Login | None]],
        who: Who,
        make: MakeSession = Session,
    ) -> Session | Owner:
        """Find a session, or open it here. login: authenticates the client, None = no identity. who: the request's.

        make: constructs the session. If it closes it, services are not notified, and its client gets the reason.

        A session that was found may belong to another client: the caller must ask its binding.

        Raises HandshakeRefused, ConnectionClosed, and what `login` raises except InvalidToken, which ends the session.
        """
        for _ in range(_ATTEMPTS):
            found = await self.find(session_id)
            if found is not None:
                return found
            opened = await self._open(session_id, remote_ip, login, who, make)
            if opened is not None:
                return opened
        raise HandshakeRefused(503, "unavailable", "This session's id is in use: try another one")

    def close_all(self) -> None:
        """Close all sessions; clients with a receiver get the close frame."""
        for session in tuple(self._sessions.values()):
            session.connection.close(CloseCode.GOING_AWAY, "Going away")

    def abort_all(self) -> None:
        """Abort all sessions."""
        for session in tuple(self._sessions.values()):
            session.abort()

    async def _open(
        self,
        session_id: str,
        remote_ip: str,
        login: Callable[[], Awaitable[Login | None]],
        asks: Who,
        make: MakeSession,
    ) -> Session | None:
        """Open a session; None: its id is already registered."""
        node = self._node
        refuse_draining(node)
        self._admission.knock(remote_ip)
        entry = await enter(node, self._admission, remote_ip, login)
        who, refusal = entry.session, entry.refusal
        try:
            refuse_draining(node)  # authentication may have taken a while
        except BaseException:
            entry.leave()
            raise
        binding = Binding(asks.known_as(None if who is None else who.who.identity))
        session = make(node, self._registry, self._timing, self._clock, remote_ip, binding)
        session.on_removed = lambda: self._remove(session_id, session)
        node.cluster_limits.counts.bind(session.connection, entry.units)
        if who is not None:
            try:
                node.auth.bind(who, session.connection)
            except InvalidToken as error:  # it was revoked just now
                refusal = error
        try:
            if refusal is not None:  # neither services nor other nodes are notified
                node.metrics.handshakes_rejected.labels("token").inc()
                node.auth.refusals.note("token", refusal.reason, address=remote_ip)
                session.connection.close(refusal.close_code, str(refusal))
            elif not session.connection.is_closed and not await self._claim(session, session_id):
                session.abort()
                return None
        except BaseException:
            session.abort()
            raise
        self._sessions[session_id] = session
        self._wheel.add(session)
        return session

    async def _claim(self, session: Session, session_id: str) -> bool:
        """Register the session, here and in the cluster. Raises HandshakeRefused."""
        if self._ownership is None:
            if session_id in self._sessions:
                return False
            self._node.connect(session.connection, self._registry)
            return True
        try:
            await self._prepare()
            self._node.connect(session.connection, self._registry)  # only the node's connections can own names
            # of two requests that open a session at one moment, one finds the other's: also if both are one user's
            return await self._ownership.claim(session.connection, self._names, session_id, may_take_over=False)
        except BrokerUnavailable:
            raise _unavailable() from None
        except ConnectionClosed:
            return True  # a service has closed it: the client must get the close frame

    def _remove(self, session_id: str, session: Session) -> None:
        self._wheel.remove(session)
        if self._sessions.get(session_id) is session:
            del self._sessions[session_id]
        self._admission.leave(session.connection.remote_ip)
        self._node.cluster_limits.counts.forget(session.connection)
        self._node.auth.forget(session.connection)  # needed if it was never connected to the node


def _unavailable() -> HandshakeRefused:
    return HandshakeRefused(503, "unavailable", "Sessions cannot be found for the moment")


def _ownership_of(node: Node) -> Ownership | None:
    try:
        return node.ownership
    except ConfigurationError:
        return None
