"""Sessions: who the local connections are, until when. What ends them when that is over.

Rules:
- A session stands here before it is checked against the revocations and until its connection has gone; a
  revocation that comes meanwhile marks it, and who checks looks at the mark.
- `connection.identity` is the truth about who a connection is, whoever set it: a token, a hook, or a service. A
  revocation looks at all connections of the node for it, once for all revocations that one loop tick brings.
- One timer for all deadlines of a node, and none while there are none: deadlines stand by the tick that they fall into.
- Deadlines are kept by the loop's clock: when a node's wall clock jumps, nobody is sent away.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from typing import Final

from gateway.auth import Identity
from gateway.connection import Connection
from gateway.errors import CloseCode
from gateway.revocation import Kind, Revocation

__all__ = ["Session", "Sessions"]

TICK_S: Final = 0.25


class Session:
    """Somebody who said who they are. `end`: close code and reason, once it is over."""

    __slots__ = ("connection", "deadline", "end", "who")

    def __init__(self, who: Identity) -> None:
        self.who = who
        self.connection: Connection | None = None  # there once its handshake is done
        self.deadline: int | None = None  # tick
        self.end: tuple[CloseCode, str] | None = None

    def is_hit(self, revocation: Revocation) -> bool:
        """True if a revocation means this one."""
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
    """The sessions of one node. clock: wall clock, which tokens are dated by. grace_s: how long one outlives that."""

    def __init__(self, clock: Callable[[], float] = time.time, *, grace_s: float = 0.0) -> None:
        self._clock = clock
        self._grace_s = grace_s
        self._by_connection: dict[Connection, Session] = {}
        self._by_name: dict[tuple[bool, str], set[Session]] = {}  # is it a token's id?, name
        self._due: dict[int, set[Session | Connection]] = {}  # sessions that expire; connections without one
        self._awaited: dict[Connection, int] = {}  # those without one, and their tick
        self._connections: Callable[[], Iterable[Connection]] = tuple  # of the node
        self._unswept: dict[str, Kind] = {}  # identities that connections are to be looked through for
        self._ticked = 0  # tick that was looked at last
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._by_connection)

    def look_through(self, connections: Callable[[], Iterable[Connection]]) -> None:
        """Say where all connections of the node are found, also those whose identity a service set."""
        self._connections = connections

    def enter(self, who: Identity) -> Session:
        """Make a session that revocations find from now on. `bind` or `leave` is owed."""
        session = Session(who)
        for name in _names(who):
            self._by_name.setdefault(name, set()).add(session)
        return session

    def bind(self, session: Session, connection: Connection) -> None:
        """Give a connection its identity; a session that it had is over."""
        previous = self._by_connection.get(connection)
        if previous is not None:
            self.leave(previous)
        self._no_more_awaited(connection)
        session.connection = connection
        connection.identity = session.who.identity
        self._by_connection[connection] = session
        if session.who.expires_at_s != math.inf:
            session.deadline = self._at(session.who.expires_at_s - self._clock() + self._grace_s, session)

    def leave(self, session: Session) -> None:
        """Take a session out. Idempotent."""
        for name in _names(session.who):
            named = self._by_name.get(name)
            if named is not None:
                named.discard(session)
                if not named:
                    del self._by_name[name]
        self._not_due(session.deadline, session)
        if session.connection is not None and self._by_connection.get(session.connection) is session:
            del self._by_connection[session.connection]

    def expect(self, connection: Connection, within_s: float) -> None:
        """Close a connection unless it has a session in time."""
        self._awaited[connection] = self._at(within_s, connection)

    def forget(self, connection: Connection) -> None:
        """Know that a connection has gone. Idempotent."""
        self._no_more_awaited(connection)
        session = self._by_connection.get(connection)
        if session is not None:
            self.leave(session)

    def on_revocation(self, revocation: Revocation) -> None:
        """End the sessions that a revocation means."""
        for session in tuple(self._by_name.get((revocation.kind is Kind.TOKEN, revocation.name), ())):
            if session.is_hit(revocation):
                self.end(session, *_ENDS[revocation.kind])
        if revocation.kind is not Kind.TOKEN:
            if not self._unswept:
                asyncio.get_running_loop().call_soon(self._sweep)
            self._unswept[revocation.name] = revocation.kind

    def end(self, session: Session, code: CloseCode, reason: str) -> None:
        """End a session, and its connection if it has one by now."""
        session.end = code, reason
        if session.connection is not None:
            session.connection.close(code, reason)

    def _sweep(self) -> None:
        """End the connections whose identity no token and no hook, but a service has set."""
        kinds, self._unswept = self._unswept, {}
        for connection in self._connections():
            kind = kinds.get(connection.identity) if connection.identity is not None else None
            if kind is None:
                continue
            session = self._by_connection.get(connection)
            if session is None or session.who.identity != connection.identity:  # the others were looked at by date
                connection.close(*_ENDS[kind])

    def stop(self) -> None:
        """End the timer."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- deadlines -------------------------------------------------------------------------------------------

    def _at(self, within_s: float, what: Session | Connection) -> int:
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._ticked = math.floor(loop.time() / TICK_S)
            self._timer = loop.call_later(TICK_S, self._tick)
        tick = max(self._ticked + 1, math.ceil((loop.time() + within_s) / TICK_S))
        self._due.setdefault(tick, set()).add(what)
        return tick

    def _not_due(self, tick: int | None, what: Session | Connection) -> None:
        due = None if tick is None else self._due.get(tick)
        if due is not None and tick is not None:
            due.discard(what)
            if not due:
                del self._due[tick]

    def _no_more_awaited(self, connection: Connection) -> None:
        self._not_due(self._awaited.pop(connection, None), connection)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = math.floor(loop.time() / TICK_S)
        # after a stall of the loop the ticks between were not looked at; a jump over very many: the keys are fewer
        passed = range(self._ticked + 1, now + 1)
        self._ticked = now
        ticks = passed if len(passed) <= len(self._due) else sorted(tick for tick in self._due if tick <= now)
        for tick in ticks:
            for what in self._due.pop(tick, ()):
                if isinstance(what, Session):
                    self.end(what, CloseCode.BAD_TOKEN, "Token expired")
                else:
                    self._awaited.pop(what, None)
                    if what.identity is None:
                        what.close(CloseCode.AUTHENTICATION_TIMEOUT, "Not authenticated in time")
        if self._due:
            self._timer = loop.call_later(TICK_S, self._tick)


def _names(who: Identity) -> list[tuple[bool, str]]:
    return [(False, who.identity)] + ([(True, who.token_id)] if who.token_id is not None else [])
