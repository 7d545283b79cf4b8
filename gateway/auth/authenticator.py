"""Authenticator: authenticates clients and applies revocations. One per node.

    token -> Verifier -> session registered here -> check against the revocations -> bound to the connection

A session is registered before the check: a revocation that arrives in between finds it.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, TypeVar

import structlog
from prometheus_client import Counter

from snorky.gateway.auth.grants import Grant, Grants, ended
from snorky.gateway.auth.sessions import Session, Sessions
from snorky.gateway.auth.tokens import Identity, Verifier, check_identity
from snorky.gateway.config.auth import Auth
from snorky.gateway.connection.connection import NO_CLAIMS, Connection
from snorky.gateway.connection.refusals import Refusals
from snorky.gateway.contracts.hooks import Answer, Hooks, Question
from snorky.gateway.contracts.revocations import Kind, LocalRevocations, Revocation, Revocations
from snorky.gateway.errors import (
    BrokerUnavailable,
    ConnectionClosed,
    HookRefused,
    HookUnavailable,
    InvalidToken,
    NotAuthenticated,
    Refused,
    Revoked,
)
from snorky.gateway.metrics import Metrics

__all__ = ["AlreadyAuthenticated", "Authenticator"]

TIMEOUT_S: Final = 5.0  # for keys, Redis and a hook together
RETRY_S: Final = 1.0  # between attempts to read the revocations for the first time

_log = structlog.get_logger("snorky.auth")

Entered = TypeVar("Entered", Session, Grant)


class AlreadyAuthenticated(Refused):
    """A connection already has another identity. The client must reconnect: services use the present identity."""

    code = "already_authenticated"

    def __init__(self) -> None:
        super().__init__("Already authenticated")


class _NotConfigured(Refused):
    """No key for tokens is configured."""

    code = "not_configured"

    def __init__(self) -> None:
        super().__init__("Tokens are not configured")


class Authenticator:
    """verifier: None = tokens are not configured. revocations: the cluster's; None = only this process's."""

    def __init__(
        self,
        verifier: Verifier | None = None,
        *,
        metrics: Metrics,
        revocations: Revocations | None = None,
        auth: Auth | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._verifier = verifier
        self.revocations = revocations or LocalRevocations(clock)
        self._auth = auth or Auth()
        self._hooks: Hooks | None = None
        self._clock = clock
        self._outcomes = metrics.authentications
        self.refusals = Refusals(metrics)  # of the whole node
        self._grant_outcomes = metrics.subscription_tokens
        self._sessions = Sessions(clock, grace_s=self._auth.leeway_s)
        self.revocations.read_while(self._sessions.has_clients)
        self.on_other_claims: Callable[[Connection], object] = lambda _connection: None  # set by the node
        self.before_identity: Callable[[Connection, str], Awaitable[None]] = _admit  # set by the node; may refuse
        self.after_identity: Callable[[Connection], object] = lambda _connection: None  # likewise
        self.on_identified: Callable[[Connection], object] = lambda _connection: None  # likewise
        self.grants = Grants(clock, grace_s=self._auth.leeway_s)
        self._beginning: asyncio.Task[None] | None = None

    @property
    def takes_tokens(self) -> bool:
        """True if this node can verify tokens."""
        return self._verifier is not None

    @property
    def asks_backend(self) -> bool:
        """True if the backend is asked about each connection."""
        return self._hooks is not None

    @property
    def is_configured(self) -> bool:
        """True if clients can have identities: tokens or a hook are configured, or an identity is required."""
        return self._verifier is not None or self._auth.is_configured or self._hooks is not None

    def ask_by(self, hooks: Hooks) -> None:
        """Ask the backend about each client before it gets an identity, if the hooks have one for `connect`."""
        self._hooks = hooks if hooks.asks("connect") else None

    @property
    def now_s(self) -> float:
        """The wall clock by which tokens expire."""
        return self._clock()

    def start(self, connections: Callable[[], Iterable[Connection]]) -> None:
        """Begin to read revocations before any login: a service may set an identity without a token.

        connections: returns all of the node. Returns at once; retries until Redis responds.
        """
        self._sessions.look_through(connections)
        if self._beginning is None:
            self._beginning = asyncio.get_running_loop().create_task(self._begin(), name="revocations begin")

    async def stop(self) -> None:
        """Cancel timers and stop receiving revocations. Idempotent."""
        task, self._beginning = self._beginning, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._sessions.stop()
        self.grants.stop()
        await self.revocations.stop()

    # -- connections, for handlers and the node --------------------------------------------------------------

    async def enter(self, token: str) -> Session:
        """Verify a token before its connection exists. The caller must then call `bind` or `leave`.

        Raises InvalidToken (including Revoked), Refused: tokens are not configured, BrokerUnavailable.
        """
        if self._verifier is None:
            raise _NotConfigured
        return await self._counted(self._enter_token(token, self._verifier), self._outcomes)

    async def enter_as(self, identify: Callable[[], Awaitable[str | int | None]]) -> Session | None:
        """Ask a hook for the identity; None = unknown. Otherwise as `enter`; the hook's exceptions are not caught."""
        began_s = self._clock()
        async with asyncio.timeout(TIMEOUT_S):
            identity = await identify()
        if identity is None:
            return None
        # the hook saw the state at the time of its call: earlier revocations do not apply
        return await self._counted(self._enter_since(Identity(check_identity(identity)), began_s), self._outcomes)

    async def ask_to_connect(self, who: Identity | None, address: str) -> Answer | None:
        """Ask the backend whether a client may connect. who: None = anonymous. Returns None if it need not be asked.

        Raises HookRefused; HookUnavailable: it gave no usable answer.
        """
        if self._hooks is None:
            return None
        identity, claims = (None, NO_CLAIMS) if who is None else (who.identity, who.claims)
        question = Question(operation="connect", identity=identity, claims=claims, address=address)
        try:
            return await self._hooks.ask(question)
        except HookRefused:
            self._outcomes.labels("hook").inc()
            raise
        except HookUnavailable as error:
            self._outcomes.labels(error.reason).inc()
            raise

    async def ask_again(self, connection: Connection) -> None:
        """Ask the backend whether a connection may stay; an earlier answer does not count.

        Raises HookRefused; HookUnavailable: it gave no usable answer.
        """
        if self._hooks is not None:
            question = Question(
                operation="connect",
                identity=connection.identity,
                claims=connection.claims,
                address=connection.remote_ip,
                is_fresh=True,
            )
            await self._hooks.ask(question)

    async def enter_answer(self, answer: Answer) -> Session:
        """Register a client whose identity the backend's answer contains. Otherwise as `enter`."""
        who = Identity(check_identity(answer.identity), expires_at_s=answer.expires_at_s, claims=answer.claims)
        # a cached answer does not outlive a revocation
        return await self._counted(self._enter_since(who, answer.asked_at_s), self._outcomes)

    def bind(self, session: Session, connection: Connection) -> None:
        """Give a connection the identity of a session. Raises InvalidToken: the session has already ended."""
        if session.end is not None:
            self._sessions.leave(session)
            raise _over(session)
        self._sessions.bind(session, connection)

    def renew(self, connection: Connection, claims: Mapping[str, Any] | None, expires_in_s: float | None) -> bool:
        """Give a connection other claims, or another time at which it expires. None = as it is.

        The identity stays, and the same revocations apply. Returns False: the connection has no identity, or is closed.
        """
        identity, before = connection.identity, self._sessions.of(connection)
        if identity is None or connection.is_closed:
            return False
        who = before.who if before is not None else Identity(identity, claims=connection.claims)
        if claims is not None:
            who = replace(who, claims=MappingProxyType(claims))
        if expires_in_s is not None:
            who = replace(who, expires_at_s=self._clock() + expires_in_s)
        self._sessions.bind(self._sessions.enter(who), connection)
        return True

    def leave(self, session: Session) -> None:
        """Remove a session that got no connection."""
        self._sessions.leave(session)

    def expect(self, connection: Connection) -> None:
        """Start the deadline: a connection that does not authenticate in time is closed (4502)."""
        self._sessions.expect(connection, self._auth.timeout_s)

    def forget(self, connection: Connection) -> None:
        """Remove a closed connection. Idempotent."""
        self._sessions.forget(connection)
        self.grants.forget(connection)

    def count_refused(self, reason: str) -> None:
        """Count a client that was refused for a reason unrelated to its token. reason: a literal."""
        self._outcomes.labels(reason).inc()

    # -- for services ----------------------------------------------------------------------------------------

    async def authenticate(self, connection: Connection, token: str) -> Identity:
        """Set a connection's identity from a token; if it has that identity already, as `refresh`.

        Raises InvalidToken, AlreadyAuthenticated, Refused: tokens are not configured, BrokerUnavailable,
        ConnectionClosed, HookRefused, HookUnavailable, LimitExceeded: the identity has too many connections.
        """
        return await self._become(connection, await self.enter(token))

    async def identify(self, connection: Connection, identity: str) -> Identity:
        """Set a connection's identity that its protocol has verified. Raises as `authenticate`, without tokens."""
        entering = self._enter_since(Identity(check_identity(identity)), self._clock())
        return await self._become(connection, await self._counted(entering, self._outcomes))

    async def _become(self, connection: Connection, session: Session) -> Identity:
        """Give a connection the identity of a session, if limits and the backend admit it. See `authenticate`."""
        try:
            _check_fits(connection, session)
            if await self.ask_to_connect(session.who, connection.remote_ip) is not None:
                _check_fits(connection, session)  # it may have closed meanwhile
            await self.before_identity(connection, session.who.identity)
            _check_fits(connection, session)
        except BaseException:
            self.leave(session)
            raise
        is_first = connection.identity is None
        self.bind(session, connection)
        self.after_identity(connection)
        self.on_other_claims(connection)
        if is_first:
            self.on_identified(connection)
        return session.who

    async def refresh(self, connection: Connection, token: str) -> Identity:
        """Replace the present token by a later one. Raises NotAuthenticated, and as `authenticate`."""
        if connection.identity is None:
            raise NotAuthenticated
        return await self.authenticate(connection, token)

    async def grant(self, connection: Connection, service: str, channel: str, token: str) -> Grant:
        """Verify a subscription token for a channel of a service. The caller must start it, or leave it, in `grants`.

        channel: its name. Raises InvalidToken (including Revoked): also a token for another client, service or
        channel; Refused: tokens are not configured; BrokerUnavailable.
        """
        if self._verifier is None:
            raise _NotConfigured
        granting = self._grant(connection, service, channel, token, self._verifier)
        return await self._counted(granting, self._grant_outcomes)

    def expires_in_s(self, who: Identity) -> int | None:
        """Return the seconds until an identity expires; None = it does not expire."""
        return None if who.expires_at_s == math.inf else max(0, int(who.expires_at_s - self._clock()))

    async def revoke(self, identity: str) -> None:
        """Invalidate all tokens of an identity issued so far, on all nodes. Raises BrokerUnavailable."""
        await self.revocations.add(Kind.IDENTITY, identity)

    async def revoke_token(self, token_id: str) -> None:
        """Invalidate one token, by its `jti`, on all nodes. Raises BrokerUnavailable."""
        await self.revocations.add(Kind.TOKEN, token_id)

    async def disconnect(self, identity: str, *, reconnect: bool = False) -> None:
        """Close an identity's connections on all nodes. reconnect: clients may return. Raises BrokerUnavailable."""
        await self.revocations.add(Kind.RECONNECT if reconnect else Kind.DISCONNECT, identity)

    # -- inner -----------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        is_failing = False
        while True:
            try:
                await self.revocations.begin(self._on_revocation)
                return
            except BrokerUnavailable:
                if not is_failing:
                    _log.warning("revocations not read; trying again", every_s=RETRY_S)
            except Exception:  # the top of a task: it must continue, or revocations are never read
                if not is_failing:
                    _log.exception("revocations not read; trying again", every_s=RETRY_S)
            is_failing = True
            await asyncio.sleep(RETRY_S)

    async def _enter_token(self, token: str, verifier: Verifier) -> Session:
        return await self._enter(await verifier.verify(token))

    async def _enter_since(self, who: Identity, since_s: float) -> Session:
        """Enter an identity without a token. since_s: by this node's clock; revocations are dated by another."""
        list_s = await self.revocations.now_s()
        return await self._enter(replace(who, valid_since_s=since_s - (self._clock() - list_s)))

    async def _enter(self, who: Identity) -> Session:
        await self.revocations.begin(self._on_revocation)
        session = self._sessions.enter(who)
        try:
            for revocation in await self.revocations.find(who.identity, who.token_id):
                if session.is_hit(revocation):
                    raise Revoked
            if session.end is not None:
                raise _over(session)
        except BaseException:
            self._sessions.leave(session)
            raise
        return session

    async def _grant(self, connection: Connection, service: str, channel: str, token: str, verifier: Verifier) -> Grant:
        found = await verifier.verify_subscription(token)
        if found.identity != connection.identity:
            raise InvalidToken("other_client")
        if (found.service, found.channel) != (service, channel):
            raise InvalidToken("other_channel")
        await self.revocations.begin(self._on_revocation)
        grant = self.grants.enter(connection, f"{service}:{channel}", found)
        try:
            for revocation in await self.revocations.find(found.identity or "", found.token_id):
                if grant.is_hit(revocation):
                    raise Revoked
            if grant.end is not None:  # meanwhile
                raise ended(grant)
        except BaseException:
            self.grants.leave(grant)
            raise
        return grant

    def _on_revocation(self, revocation: Revocation) -> None:
        self._sessions.on_revocation(revocation)
        self.grants.on_revocation(revocation)

    @staticmethod
    async def _counted(entering: Awaitable[Entered], outcomes: Counter) -> Entered:
        outcome = "unavailable"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                entered = await entering
            outcome = "ok"
            return entered
        except TimeoutError:
            raise BrokerUnavailable("authentication") from None
        except InvalidToken as error:
            outcome = error.reason
            raise
        finally:
            outcomes.labels(outcome).inc()


def _check_fits(connection: Connection, session: Session) -> None:
    """Raise ConnectionClosed or AlreadyAuthenticated if the connection cannot get this session's identity."""
    if connection.is_closed:
        raise ConnectionClosed
    if connection.identity is not None and connection.identity != session.who.identity:
        raise AlreadyAuthenticated


async def _admit(_connection: Connection, _identity: str) -> None:
    """Admit every connection: there are no limits."""


def _over(session: Session) -> InvalidToken:
    assert session.end is not None  # noqa: S101 - for the type checker: the callers have checked it
    code, reason = session.end
    return InvalidToken("ended", reason, close_code=code)
