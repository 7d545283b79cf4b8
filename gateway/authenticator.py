"""Authenticator: lets clients say who they are, and makes what was revoked not count. One per node.

    token -> Verifier -> a session, entered -> looked up among the revocations -> bound to the connection

A session is entered before it is looked up: a revocation that comes in between finds it here.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog

from gateway.auth import Identity, Verifier, check_identity
from gateway.auth_settings import Auth
from gateway.connection import Connection
from gateway.errors import BrokerUnavailable, ConnectionClosed, InvalidToken, NotAuthenticated, Refused, Revoked
from gateway.metrics import Metrics
from gateway.refusals import Refusals
from gateway.revocation import Kind, LocalRevocations, Revocations
from gateway.sessions import Session, Sessions

__all__ = ["AlreadyAuthenticated", "Authenticator"]

TIMEOUT_S: Final = 5.0  # for keys, Redis and a hook together
RETRY_S: Final = 1.0  # of reading the revocations for the first time

_log = structlog.get_logger("snorky.auth")


class AlreadyAuthenticated(Refused):
    """A connection has said who it is, and now says something else. It must come anew: services know it by now."""

    code = "already_authenticated"

    def __init__(self) -> None:
        super().__init__("Already authenticated")


class _NotConfigured(Refused):
    """There are no keys to verify tokens by."""

    code = "not_configured"

    def __init__(self) -> None:
        super().__init__("Tokens are not configured")


class Authenticator:
    """verifier: of tokens, None = there are none. revocations: of the cluster; of this process unless given."""

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
        self._revocations = revocations or LocalRevocations(clock)
        self._auth = auth or Auth()
        self._clock = clock
        self._outcomes = metrics.authentications
        self.refusals = Refusals(metrics)  # of the whole node
        self._sessions = Sessions(clock, grace_s=self._auth.leeway_s)
        self._beginning: asyncio.Task[None] | None = None

    @property
    def takes_tokens(self) -> bool:
        """True if tokens can be verified here."""
        return self._verifier is not None

    def start(self, connections: Callable[[], Iterable[Connection]]) -> None:
        """Begin to read revocations, before anybody has logged in: a service may set an identity without a token.

        connections: all of the node. Returns at once; tries again until Redis answers.
        """
        self._sessions.look_through(connections)
        if self._beginning is None:
            self._beginning = asyncio.get_running_loop().create_task(self._begin(), name="revocations begin")

    async def stop(self) -> None:
        """End timers and watching. Idempotent."""
        task, self._beginning = self._beginning, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._sessions.stop()
        await self._revocations.stop()

    # -- connections, for handlers and the node --------------------------------------------------------------

    async def enter(self, token: str) -> Session:
        """Verify a token of somebody who has no connection yet. `bind` or `leave` is owed.

        Raises InvalidToken (Revoked among them), Refused: tokens are not configured, BrokerUnavailable.
        """
        if self._verifier is None:
            raise _NotConfigured
        return await self._counted(self._enter_token(token, self._verifier))

    async def enter_as(self, identify: Callable[[], Awaitable[str | int | None]]) -> Session | None:
        """Let a hook say who somebody is; None = it does not know. As `enter`; what the hook raises comes through."""
        began_s = self._clock()
        async with asyncio.timeout(TIMEOUT_S):
            identity = await identify()
        if identity is None:
            return None
        # it was so when it was asked; what was revoked before that, the hook knows
        who = Identity(check_identity(identity), valid_since_s=began_s)
        return await self._counted(self._enter(who))

    def bind(self, session: Session, connection: Connection) -> None:
        """Give a connection the identity of a session. Raises InvalidToken: it is over already."""
        if session.end is not None:
            self._sessions.leave(session)
            raise _over(session)
        self._sessions.bind(session, connection)

    def leave(self, session: Session) -> None:
        """Give up a session that no connection came of."""
        self._sessions.leave(session)

    def expect(self, connection: Connection) -> None:
        """Close a connection unless it says in time who it is (4502)."""
        self._sessions.expect(connection, self._auth.deadline_s)

    def forget(self, connection: Connection) -> None:
        """Know that a connection has gone. Idempotent."""
        self._sessions.forget(connection)

    def count_refused(self, reason: str) -> None:
        """Count somebody who was turned away for a reason that is not the token's. reason: a literal."""
        self._outcomes.labels(reason).inc()

    # -- what services ask for -------------------------------------------------------------------------------

    async def authenticate(self, connection: Connection, token: str) -> Identity:
        """Set a connection's identity by a token; the same identity again is as `refresh`.

        Raises InvalidToken, AlreadyAuthenticated, Refused: tokens are not configured, BrokerUnavailable,
        ConnectionClosed.
        """
        session = await self.enter(token)
        try:
            if connection.is_closed:
                raise ConnectionClosed
            if connection.identity is not None and connection.identity != session.who.identity:
                raise AlreadyAuthenticated
        except Refused:
            self.leave(session)
            raise
        self.bind(session, connection)
        return session.who

    async def refresh(self, connection: Connection, token: str) -> Identity:
        """Let a later token take the place of the present one. Raises NotAuthenticated, and as `authenticate`."""
        if connection.identity is None:
            raise NotAuthenticated
        return await self.authenticate(connection, token)

    def expires_in_s(self, who: Identity) -> int | None:
        """Tell for how long somebody is known; None = as long as the connection lasts."""
        return None if who.expires_at_s == math.inf else max(0, int(who.expires_at_s - self._clock()))

    async def revoke(self, identity: str) -> None:
        """Make no token of an identity good that was issued until now, on any node. Raises BrokerUnavailable."""
        await self._revocations.add(Kind.IDENTITY, identity)

    async def revoke_token(self, token_id: str) -> None:
        """Make one token no good, by its `jti`, on any node. Raises BrokerUnavailable."""
        await self._revocations.add(Kind.TOKEN, token_id)

    async def disconnect(self, identity: str, *, reconnect: bool = False) -> None:
        """End an identity's connections on all nodes. reconnect: they may come back. Raises BrokerUnavailable."""
        await self._revocations.add(Kind.RECONNECT if reconnect else Kind.DISCONNECT, identity)

    # -- inner -----------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        is_failing = False
        while True:
            try:
                await self._revocations.begin(self._sessions.on_revocation)
                return
            except BrokerUnavailable:
                if not is_failing:
                    _log.warning("revocations not read; trying again", every_s=RETRY_S)
            except Exception:  # the top of a task: without it revocations would never be read
                if not is_failing:
                    _log.exception("revocations not read; trying again", every_s=RETRY_S)
            is_failing = True
            await asyncio.sleep(RETRY_S)

    async def _enter_token(self, token: str, verifier: Verifier) -> Session:
        return await self._enter(await verifier.verify(token))

    async def _enter(self, who: Identity) -> Session:
        await self._revocations.begin(self._sessions.on_revocation)
        session = self._sessions.enter(who)
        try:
            for revocation in await self._revocations.find(who.identity, who.token_id):
                if session.is_hit(revocation):
                    raise Revoked
            if session.end is not None:
                raise _over(session)
        except BaseException:
            self._sessions.leave(session)
            raise
        return session

    async def _counted(self, entering: Awaitable[Session]) -> Session:
        outcome = "unavailable"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                session = await entering
            outcome = "ok"
            return session
        except TimeoutError:
            raise BrokerUnavailable("authentication") from None
        except InvalidToken as error:
            outcome = error.reason
            raise
        finally:
            self._outcomes.labels(outcome).inc()


def _over(session: Session) -> InvalidToken:
    assert session.end is not None  # noqa: S101 - a fact for the type checker: the callers have looked
    code, reason = session.end
    return InvalidToken("ended", reason, close_code=code)
