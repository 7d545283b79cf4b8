"""Subscriptions with a token: it is verified first, permits the subscription, and ends it when it expires."""

from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager
from typing import Any

from snorky.gateway import InvalidToken, Service, channel_name
from snorky.services.requests import Request, RPCError

__all__ = ["demand_text", "granted"]


@asynccontextmanager
async def granted(service: Service, request: Request, channel: Any, token: Any) -> AsyncIterator[Container[str] | None]:
    """Verify a token, yield the operations that it permits, and bind it to the subscription that the block makes.

    token: None = without one; yields None. If the block fails, a token that the subscription had before
    remains. Raises RPCError: the token is not accepted; what the client has subscribed in the block is ended then.
    """
    if token is None:
        yield None
        return
    auth, connection = service.cluster.auth, request.connection
    try:
        grant = await auth.grant(connection, service.name, channel_name(channel), demand_text(token))
    except InvalidToken as error:
        raise _refusal(error) from None
    try:
        yield grant.token.operations
    except BaseException:
        auth.grants.leave(grant)
        raise
    try:
        auth.grants.start(grant, lambda code, reason: service.end_subscription(connection, channel, code, reason))
    except InvalidToken as error:  # it expired or was revoked while the block subscribed
        service.cut_subscription(connection, channel)
        raise _refusal(error) from None


def demand_text(token: Any) -> str:
    """Return a token that is a text. Raises RPCError."""
    if not isinstance(token, str):
        raise RPCError("Invalid params", "invalid_params")
    return token


def _refusal(error: InvalidToken) -> RPCError:
    if error.reason == "expired":
        return RPCError("Token expired", "token_expired")
    return RPCError(str(error), error.code)
