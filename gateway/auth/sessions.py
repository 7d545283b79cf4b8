"""Sessions: the identities of local connections; closes connections when their identity expires or is revoked.

Rules:
- A session is registered before it is checked against the revocations, until its connection has gone. A
  revocation that arrives in between sets its `end`, which the code that checks looks at.
- `connection.identity` is the connection's identity, whether a token, a hook or a service has set it. A
  revocation is compared with all connections of the node, once for all revocations of one loop tick.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from typing import Final

from snorky.gateway.auth.tokens import Identity
from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.deadlines import Deadlines
from snorky.gateway.contracts.revocations import Kind, Revocation
from snorky.gateway.errors import CloseCode

__all__ = ["Session", "Sessions"]


class Session:
    """An authenticated client. `end`: close code and reason, once the session has ended."""

    __slots__ = ("connection", "deadline", "end", "who")

    def __init__(self, who: Identity) -> None:
        self.who = who
        self.connection: Connection | None = None  # set after the handshake
        self.deadline: int | None = None  # tick
        self.end: tuple[CloseCode, str] | None = None

    def is_hit(self, revocation: Revocation) -> bool:
        """True if a revocation applies to this session."""
        if revocation.kind is Kind.TOKEN:
            return self.who.token_id == revocation.name
        return self.who.identity == revocation.name and (
            revocation.kind is not Kind.IDENTITY or revocation.at_s >= self.who.valid_since_s
        )


_ENDS: Final = {
    Kind.IDENTITY: (CloseCode.REVOKED, "Revoked"),
    Kind.TOKEN: (CloseCode.REVOKED, "Revoked"),
    Kind.DISCONNECT: (CloseCode.DISCONNECTED, "Disconnected"),
    Kind.RECONNECT: (CloseCode.RECONNECT, "Come back"),
}


class Sessions:
    """The sessions of one node. clock: wall clock, for the tokens' times. grace_s: added to each token's lifetime."""

    def __init__(self, clock: Callable[[], float] = time.time, *, grace_s: float = 0.0) -> None:
        self._clock = clock
        self._grace_s = grace_s
        self._by_connection: dict[Connection, Session] = {}
        self._by_name: dict[tuple[bool, str], set[Session]] = {}  # by (is it a token's id, name)
        self._deadlines: Deadlines[Session | Connection] = Deadlines(self._on_due)  # of tokens, and to authenticate
        self._awaited: dict[Connection, int] = {}  # unauthenticated connections, with the tick of their deadline
        self._connections: Callable[[], Iterable[Connection]] = tuple  # of the node
        self._unswept: dict[str, Kind] = {}  # revoked identities not yet compared with all connections

    def __len__(self) -> int:
        return len(self._by_connection)

    def has_clients(self) -> bool:
        """Return True if the node has a connection or a session; otherwise no revocation can apply."""
        return bool(self._by_name) or next(iter(self._connections()), None) is not None

    def look_through(self, connections: Callable[[], Iterable[Connection]]) -> None:
        """Set the source of all connections of the node, including those whose identity a service has set."""
        self._connections = connections

    def enter(self, who: Identity) -> Session:
        """Register a session, so that revocations find it. The caller must then call `bind` or `leave`."""
        session = Session(who)
        for name in _names(who):
            self._by_name.setdefault(name, set()).add(session)
        return session

    def bind(self, session: Session, connection: Connection) -> None:
        """Set a connection's identity; a session that it had before ends."""
        previous = self._by_connection.get(connection)
        if previous is not None:
            self.leave(previous)
        self._no_more_awaited(connection)
        session.connection = connection
        connection.identity, connection.claims = session.who.identity, session.who.claims
        self._by_connection[connection] = session
        if session.who.expires_at_s != math.inf:
            within_s = session.who.expires_at_s - self._clock() + self._grace_s
            session.deadline = self._deadlines.add(within_s, session)

    def of(self, connection: Connection) -> Session | None:
        """Return a connection's session; None: it has none."""
        return self._by_connection.get(connection)

    def leave(self, session: Session) -> None:
        """Remove a session. Idempotent."""
        for name in _names(session.who):
            named = self._by_name.get(name)
            if named is not None:
                named.discard(session)
                if not named:
                    del self._by_name[name]
        self._deadlines.discard(session.deadline, session)
        if session.connection is not None and self._by_connection.get(session.connection) is session:
            del self._by_connection[session.connection]

    def expect(self, connection: Connection, within_s: float) -> None:
        """Close a connection unless it gets a session in time."""
        self._awaited[connection] = self._deadlines.add(within_s, connection)

    def forget(self, connection: Connection) -> None:
        """Remove a closed connection. Idempotent."""
        self._no_more_awaited(connection)
        session = self._by_connection.get(connection)
        if session is not None:
            self.leave(session)

    def on_revocation(self, revocation: Revocation) -> None:
        """End the sessions that a revocation applies to."""
        for session in tuple(self._by_name.get((revocation.kind is Kind.TOKEN, revocation.name), ())):
            if session.is_hit(revocation):
                self.end(session, *_ENDS[revocation.kind])
        if revocation.kind is not Kind.TOKEN:
            if not self._unswept:
                asyncio.get_running_loop().call_soon(self._sweep)
            self._unswept[revocation.name] = revocation.kind

    def end(self, session: Session, code: CloseCode, reason: str) -> None:
        """End a session, and close its connection if it has one already."""
        session.end = code, reason
        if session.connection is not None:
            session.connection.close(code, reason)

    def _sweep(self) -> None:
        """Close the revoked connections whose identity was set by a service."""
        kinds, self._unswept = self._unswept, {}
        for connection in self._connections():
            kind = kinds.get(connection.identity) if connection.identity is not None else None
            if kind is None:
                continue
            session = self._by_connection.get(connection)
            if session is None or session.who.identity != connection.identity:  # for sessions, `is_hit` has decided
                connection.close(*_ENDS[kind])

    def stop(self) -> None:
        """Cancel the deadlines."""
        self._deadlines.stop()

    def _no_more_awaited(self, connection: Connection) -> None:
        self._deadlines.discard(self._awaited.pop(connection, None), connection)

    def _on_due(self, what: Session | Connection) -> None:
        if isinstance(what, Session):
            self.end(what, CloseCode.BAD_TOKEN, "Token expired")
        else:
            self._awaited.pop(what, None)
            if what.identity is None:
                what.close(CloseCode.AUTHENTICATION_TIMEOUT, "Not authenticated in time")


def _names(who: Identity) -> list[tuple[bool, str]]:
    return [(False, who.identity)] + ([(True, who.token_id)] if who.token_id is not None else [])
