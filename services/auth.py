"""AuthService: clients authenticate with a token. AuthBackend: the backend revokes tokens and ends connections.

A client may also send its token in the handshake; it then needs only `refresh`. After a bad token the client gets an
error reply and its connection is closed with 4501 or 4503, so each guess costs a new handshake.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from snorky.gateway import AlreadyAuthenticated, Connection, Identity, InvalidToken, NotAuthenticated, identity_name
from snorky.services.rpc import Request, RPCError, RPCService, rpc_command

__all__ = ["AuthBackend", "AuthService"]

_MAX_BYTES = 255  # of a token's ID (`jti`)


class AuthService(RPCService):
    """Commands `authenticate` and `refresh`, for clients; callable without an identity."""

    allows_anonymous = True

    def __init__(self, name: str = "auth") -> None:
        super().__init__(name)

    @rpc_command
    async def authenticate(self, request: Request, token: Any) -> dict[str, Any]:
        """Verify a token and set the connection's identity; replies {"identity", "expiresInS"}."""
        return await self._known(request, self.cluster.auth.authenticate, token)

    @rpc_command
    async def refresh(self, request: Request, token: Any) -> dict[str, Any]:
        """Replace the connection's token with a newer one of the same identity, before it expires.

        Subscriptions end that the rules do not permit with the new token's claims.
        """
        return await self._known(request, self.cluster.auth.refresh, token)

    async def _known(
        self, request: Request, way: Callable[[Connection, str], Awaitable[Identity]], token: Any
    ) -> dict[str, Any]:
        if not isinstance(token, str):
            raise RPCError("Invalid params", "invalid_params")
        try:
            who = await way(request.connection, token)
        except InvalidToken as error:
            self._note(request.connection, error.reason)
            _close_soon(request.connection, error)
            raise
        except (AlreadyAuthenticated, NotAuthenticated) as error:
            self._note(request.connection, error.code)
            raise
        return {"identity": who.identity, "expiresInS": self.cluster.auth.expires_in_s(who)}

    def _note(self, connection: Connection, reason: str) -> None:
        refusals = self.cluster.auth.refusals
        refusals.note("token", reason, address=connection.remote_ip, identity=connection.identity)


class AuthBackend(RPCService):
    """Commands `revoke`, `revokeToken` and `disconnect`; they reply once Redis has them.

    All nodes apply them within 5 s, also to handshakes. service: the name of the AuthService.
    """

    def __init__(self, name: str = "auth_backend", service: str = "auth") -> None:
        super().__init__(name)

    @rpc_command
    async def revoke(self, request: Request, identity: Any) -> None:
        """Close an identity's connections and reject every token issued to it until now."""
        await self.cluster.auth.revoke(_name(identity))

    @rpc_command(name="revokeToken")
    async def revoke_token(self, request: Request, jti: Any) -> None:
        """Close the connections that use one token, and reject that token from now on."""
        await self.cluster.auth.revoke_token(_text(jti))

    @rpc_command
    async def disconnect(self, request: Request, identity: Any, reconnect: Any = False) -> None:
        """Close an identity's connections. reconnect: true = with a close code after which clients reconnect."""
        if not isinstance(reconnect, bool):
            raise RPCError("Invalid params", "invalid_params")
        await self.cluster.auth.disconnect(_name(identity), reconnect=reconnect)


def _name(identity: Any) -> str:
    try:
        return identity_name(identity)
    except ValueError:
        raise RPCError("Invalid params", "invalid_params") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value.encode(errors="surrogatepass")) <= _MAX_BYTES:
        raise RPCError("Invalid params", "invalid_params")
    return value


def _close_soon(connection: Connection, error: InvalidToken) -> None:
    """Close a connection after the error reply, which is written later in this step of the event loop."""
    asyncio.get_running_loop().call_soon(connection.close, error.close_code, str(error))
