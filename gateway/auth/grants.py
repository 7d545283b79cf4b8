"""Grants: what subscription tokens permit the connections of this node, until they expire or are revoked.

    entered, so that revocations find it -> compared with the list of them -> started with its subscription -> ended

Rules:
- A grant is entered before its token is compared with the list: a revocation that arrives in between finds it.
- A grant that starts replaces the one before it on its channel. If it cannot start, that one remains.
- When a grant ends, so does the subscription that was made with it: `on_end` is called in the same step of the loop.
- While the loop is stalled no deadline fires. `catch_up` ends what is due before publications are delivered.
"""

import math
import time
from collections.abc import Callable
from typing import Final

import structlog

from snorky.gateway.auth.tokens import SubscriptionToken
from snorky.gateway.connection.connection import SERVER_SIDE, Connection
from snorky.gateway.connection.deadlines import Deadlines
from snorky.gateway.contracts.revocations import Kind, Revocation
from snorky.gateway.errors import CloseCode, InvalidToken, Revoked
from snorky.gateway.protocol.foreign import SubscribeTerms

__all__ = ["EXPIRED", "REVOKED", "Grant", "Grants", "OnEnd", "ended"]

EXPIRED: Final = ("expired", "Token expired")
REVOKED: Final = ("revoked", "Revoked")

_log = structlog.get_logger("snorky.auth")

OnEnd = Callable[[str, str], object]  # code, reason


class Grant:
    """The token of one connection for one channel. key: the channel's. end: code and reason, once it has ended."""

    __slots__ = ("connection", "deadline", "end", "key", "on_end", "token")

    def __init__(self, connection: Connection, key: str, token: SubscriptionToken) -> None:
        self.connection = connection
        self.key = key
        self.token = token
        self.deadline: int | None = None  # tick
        self.end: tuple[str, str] | None = None
        self.on_end: OnEnd | None = None  # set when the subscription has begun

    @property
    def terms(self) -> SubscribeTerms | None:
        """How the connection's frontend subscribes it; None: it is a token."""
        return self.token.info if isinstance(self.token.info, SubscribeTerms) else None

    @property
    def operations(self) -> frozenset[str]:
        """The operations that the token permits on its channel."""
        return self.token.operations

    def is_hit(self, revocation: Revocation) -> bool:
        """True if a revocation applies to the token."""
        if revocation.kind is Kind.TOKEN:
            return self.token.token_id == revocation.name
        is_identity = revocation.kind is Kind.IDENTITY and self.token.identity == revocation.name
        return is_identity and revocation.at_s >= self.token.valid_since_s


class Grants:
    """The grants of one node. clock: wall clock, for the tokens' times. grace_s: added to each token's lifetime."""

    def __init__(self, clock: Callable[[], float] = time.time, *, grace_s: float = 0.0) -> None:
        self._clock = clock
        self._grace_s = grace_s
        self._by_connection: dict[Connection, dict[str, Grant]] = {}
        self._by_name: dict[tuple[bool, str], set[Grant]] = {}  # by (is it a token's id, name)
        self._entered: dict[tuple[Connection, str], Grant] = {}  # the last one of each channel, until it starts
        self._deadlines: Deadlines[Grant] = Deadlines(lambda grant: self.end(grant, *EXPIRED))
        self.catch_up = self._deadlines.catch_up

    def __len__(self) -> int:
        return sum(map(len, self._by_connection.values()))

    def enter(self, connection: Connection, key: str, token: SubscriptionToken) -> Grant:
        """Register a grant, so that revocations find it. The caller must `start` or `leave` it."""
        grant = Grant(connection, key, token)
        for name in _names(token):
            self._by_name.setdefault(name, set()).add(grant)
        if token.expires_at_s != math.inf:
            grant.deadline = self._deadlines.add(self.expires_in_s(grant), grant)
        self._entered[connection, key] = grant
        return grant

    def entered(self, connection: Connection, key: str) -> Grant | None:
        """Return the grant with which a connection is subscribing to a channel; None: it has none, or it has started.

        A check of present subscriptions must use it: the connection is in the channel before its grant starts.
        """
        return self._entered.get((connection, key))

    def find(self, connection: Connection, key: str) -> Grant | None:
        """Return the grant of a subscription, or the one with which it is about to begin; None: it has none."""
        return self._by_connection.get(connection, {}).get(key) or self._entered.get((connection, key))

    def enter_terms(self, connection: Connection, service: str, channel: str, terms: SubscribeTerms) -> Grant:
        """Register what a connection's frontend has found permitted on a channel. As `enter`; it never expires."""
        grant = self.of_terms(connection, service, channel, terms)
        return self.enter(connection, grant.key, grant.token)

    @staticmethod
    def of_terms(connection: Connection, service: str, channel: str, terms: SubscribeTerms) -> Grant:
        """Make the grant of a frontend's terms. It has no identity: if that is revoked, the connection ends."""
        token = SubscriptionToken(None, service, channel, terms.operations, math.inf, info=terms)
        return Grant(connection, f"{service}:{channel}", token)

    def start(self, grant: Grant, on_end: OnEnd) -> None:
        """Bind a grant to its subscription, which has begun. Raises InvalidToken: it has ended meanwhile."""
        if grant.end is not None:
            raise ended(grant)
        connection = grant.connection
        self._forget_entered(grant)
        self.drop(connection, grant.key)
        grant.on_end = on_end
        self._by_connection.setdefault(connection, {})[grant.key] = grant
        if connection.grants is None:
            connection.grants = {}
        connection.grants[grant.key] = grant.operations

    def expires_in_s(self, grant: Grant) -> float:
        """Return the seconds until a grant ends: some after its token has expired. No clock of an issuer needs them
        for a server-side subscription."""
        grace_s = 0.0 if grant.operations is SERVER_SIDE else self._grace_s
        return grant.token.expires_at_s - self._clock() + grace_s

    def end(self, grant: Grant, code: str, reason: str) -> None:
        """End a grant, and the subscription made with it."""
        grant.end = code, reason
        self.leave(grant)
        if grant.on_end is None:
            return
        try:
            grant.on_end(code, reason)
        except Exception:  # a service's code: whatever it raises, the client must not receive more
            _log.exception("subscription not ended; closing the connection", key=grant.key)
            grant.connection.close(CloseCode.INTERNAL_ERROR, "Internal error")

    def leave(self, grant: Grant) -> None:
        """Remove a grant. Idempotent."""
        self._forget_entered(grant)
        self._deadlines.discard(grant.deadline, grant)
        for name in _names(grant.token):
            named = self._by_name.get(name)
            if named is not None:
                named.discard(grant)
                if not named:
                    del self._by_name[name]
        connection, grants = grant.connection, self._by_connection.get(grant.connection)
        if grants is not None and grants.get(grant.key) is grant:
            del grants[grant.key]
            if not grants:
                del self._by_connection[connection]
            if connection.grants is not None:
                connection.grants.pop(grant.key, None)

    def _forget_entered(self, grant: Grant) -> None:
        if self._entered.get((grant.connection, grant.key)) is grant:
            del self._entered[grant.connection, grant.key]

    def drop(self, connection: Connection, key: str) -> None:
        """Remove the grant of a channel: the client has unsubscribed. Idempotent."""
        grant = self._by_connection.get(connection, {}).get(key)
        if grant is not None:
            self.leave(grant)

    def forget(self, connection: Connection) -> None:
        """Remove the grants of a closed connection. Idempotent."""
        for grant in tuple(self._by_connection.get(connection, {}).values()):
            self.leave(grant)

    def on_revocation(self, revocation: Revocation) -> None:
        """End the grants that a revocation applies to."""
        for grant in tuple(self._by_name.get((revocation.kind is Kind.TOKEN, revocation.name), ())):
            if grant.is_hit(revocation):
                self.end(grant, *REVOKED)

    def stop(self) -> None:
        """Cancel the deadlines."""
        self._deadlines.stop()


def ended(grant: Grant) -> InvalidToken:
    """Return the error for a grant that has ended before it could start."""
    assert grant.end is not None  # noqa: S101 - for the type checker: the callers have checked it
    return Revoked() if grant.end == REVOKED else InvalidToken(*grant.end)


def _names(token: SubscriptionToken) -> list[tuple[bool, str]]:
    names = [(True, token.token_id)] if token.token_id is not None else []
    return names if token.identity is None else [*names, (False, token.identity)]
