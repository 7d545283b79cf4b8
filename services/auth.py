"""AuthService: clients say who they are by a token. AuthBackend: the backend takes that back.

A token may also come with the handshake; then none of this is needed but `refresh`. A bad token is answered with an
error, and then the connection ends with its close code (4501, 4503), so that guessing costs a handshake each.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gateway import AlreadyAuthenticated, Connection, Identity, InvalidToken, NotAuthenticated, identity_name
from services.rpc import Request, RPCError, RPCService, rpc_command

__all__ = ["AuthBackend", "AuthService"]

_MAX_BYTES = 255  # of a token's id


class AuthService(RPCService):
    """Commands `authenticate` and `refresh`; open to who has no identity yet."""

    is_open = True

    def __init__(self, name: str = "auth") -> None:
        super().__init__(name)

    @rpc_command
    async def authenticate(self, request: Request, token: Any) -> dict[str, Any]:
        """Set the connection's identity; replies {"identity", "expiresInS"}."""
        return await self._known(request, self.cluster.auth.authenticate, token)

    @rpc_command
    async def refresh(self, request: Request, token: Any) -> dict[str, Any]:
        """Let a later token of the same identity take the place of the present one, before that expires."""
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
    """Commands `revoke`, `revokeToken` and `disconnect`; done when Redis has it, on all nodes within 5 s.

    frontend: the name of the AuthService; what is revoked counts for handshakes too.
    """

    def __init__(self, name: str = "auth_backend", frontend: str = "auth") -> None:
        super().__init__(name)

    @rpc_command
    async def revoke(self, request: Request, identity: Any) -> None:
        """End an identity's connections, and make no token good that was issued to it until now."""
        await self.cluster.auth.revoke(_name(identity))

    @rpc_command(name="revokeToken")
    async def revoke_token(self, request: Request, jti: Any) -> None:
        """End the connections of one token, and make it no good."""
        await self.cluster.auth.revoke_token(_text(jti))

    @rpc_command
    async def disconnect(self, request: Request, identity: Any, reconnect: Any = False) -> None:
        """End an identity's connections; reconnect: they may come back."""
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
    """Close a connection behind the answer, which is written when the error has come up."""
    asyncio.get_running_loop().call_soon(connection.close, error.close_code, str(error))
