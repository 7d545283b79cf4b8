"""Sessions: the SockJS sessions of a node, and which node of the cluster has one.

Rules:
- A session's id is claimed in the cluster before its client hears that it is open: whatever node the client's next
  request reaches finds the session, so a load balancer needs no stickiness.
- A claim is the connection's, under the lease of its node: it is given back with it, also when the node is killed.
- Without a directory a node is alone, and knows all sessions that there are.
"""

from collections.abc import Awaitable, Callable

import structlog

from gateway.directory import Owner
from gateway.errors import BrokerUnavailable, CloseCode, ConfigurationError, ConnectionClosed, InvalidToken
from gateway.http.admission import Admission
from gateway.http.handshake import HandshakeRefused
from gateway.http.sockjs.binding import Binding, Who
from gateway.http.sockjs.session import Session, Timing
from gateway.http.wheel import Wheel
from gateway.node import Node
from gateway.ownership import Ownership
from gateway.registry import ServiceRegistry
from gateway.sessions import Session as Login

__all__ = ["Sessions"]

_NAMES = "sockjs sessions"  # no service can have this name
_ATTEMPTS = 3  # somebody else may claim an id, or give it back, between our question and our claim

_log = structlog.get_logger("snorky.sockjs")


class Sessions:
    """The sessions of one node. prepare: awaited before the first id is claimed; who is asked for it must hear."""

    def __init__(
        self,
        node: Node,
        registry: ServiceRegistry,
        admission: Admission,
        timing: Timing,
        clock: Callable[[], float],
        prepare: Callable[[], Awaitable[None]],
    ) -> None:
        self._node = node
        self._registry = registry
        self._admission = admission
        self._timing = timing
        self._clock = clock
        self._prepare = prepare
        self._wheel = Wheel(timing.beat_s)
        self._sessions: dict[str, Session] = {}
        self._ownership = _ownership_of(node)

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session_id: str) -> Session | None:
        """Find a session of this node."""
        return self._sessions.get(session_id)

    async def find(self, session_id: str) -> Session | Owner | None:
        """Find a session, or the other node that has it. Raises HandshakeRefused: it cannot be known now."""
        session = self.get(session_id)
        if session is not None or self._ownership is None:
            return session
        try:
            owner = await self._ownership.directory.find(_NAMES, session_id)
        except BrokerUnavailable:
            raise _unavailable() from None
        if owner is None or owner.node_id == self._node.node_id:
            return self.get(session_id)  # it may have come meanwhile, or is just going
        return owner

    async def find_or_open(
        self, session_id: str, remote_ip: str, login: Callable[[], Awaitable[Login | None]], who: Who
    ) -> Session | Owner:
        """Find a session, or make it here if there is none. login: says who the client is, if it does. who: as asks.

        One that was found may be another client's: its binding is to be asked.

        Raises HandshakeRefused, ConnectionClosed, and what `login` raises except InvalidToken, which ends the session.
        """
        for _ in range(_ATTEMPTS):
            found = await self.find(session_id)
            if found is not None:
                return found
            opened = await self._open(session_id, remote_ip, login, who)
            if opened is not None:
                return opened
        raise HandshakeRefused(503, "unavailable", "This session's id is in use: try another one")

    def close_all(self) -> None:
        """End all sessions; who is receiving is told."""
        for session in tuple(self._sessions.values()):
            session.connection.close(CloseCode.GOING_AWAY, "Going away")

    def abort_all(self) -> None:
        """Give back all that there is."""
        for session in tuple(self._sessions.values()):
            session.abort()

    async def _open(
        self, session_id: str, remote_ip: str, login: Callable[[], Awaitable[Login | None]], asks: Who
    ) -> Session | None:
        """Make a session; None: somebody else has its id."""
        node = self._node
        if node.is_draining:
            raise HandshakeRefused(503, "draining", "This node is going away: try another one")
        self._admission.knock(remote_ip)
        self._admission.enter(remote_ip)
        who: Login | None = None
        refusal: InvalidToken | None = None
        try:
            who = await login()
        except InvalidToken as error:
            refusal = error
        except BaseException:
            self._admission.leave(remote_ip)
            raise
        binding = Binding(asks.known_as(None if who is None else who.who.identity))
        session = Session(node, self._registry, self._timing, self._clock, remote_ip, binding)
        session.on_removed = lambda: self._remove(session_id, session)
        if who is not None:
            try:
                node.auth.bind(who, session.connection)
            except InvalidToken as error:  # it was revoked this very moment
                refusal = error
        try:
            if refusal is not None:  # no service hears of it, and no other node
                node.metrics.handshakes_rejected.labels("token").inc()
                node.auth.refusals.note("token", refusal.reason, address=remote_ip)
                session.connection.close(refusal.close_code, str(refusal))
            elif not await self._claim(session, session_id):
                session.abort()
                return None
        except BaseException:
            session.abort()
            raise
        self._sessions[session_id] = session
        self._wheel.add(session)
        return session

    async def _claim(self, session: Session, session_id: str) -> bool:
        """Make the session known, here and in the cluster. Raises HandshakeRefused."""
        if self._ownership is None:
            if session_id in self._sessions:
                return False
            self._node.connect(session.connection, self._registry)
            return True
        try:
            await self._prepare()
            self._node.connect(session.connection, self._registry)  # what owns something is one of the node's
            return await self._ownership.claim(session.connection, _NAMES, session_id)
        except BrokerUnavailable:
            raise _unavailable() from None
        except ConnectionClosed:
            return True  # a service wants no such client: it is to hear so

    def _remove(self, session_id: str, session: Session) -> None:
        self._wheel.remove(session)
        if self._sessions.get(session_id) is session:
            del self._sessions[session_id]
        self._admission.leave(session.connection.remote_ip)
        self._node.auth.forget(session.connection)  # if it never was one of the node's


def _unavailable() -> HandshakeRefused:
    return HandshakeRefused(503, "unavailable", "Sessions cannot be found for the moment")


def _ownership_of(node: Node) -> Ownership | None:
    try:
        return node.ownership
    except ConfigurationError:
        return None
