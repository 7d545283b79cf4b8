"""Subscriptions with a token: it is verified first, permits the subscription, and ends it when it expires."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from snorky.gateway import Grant, InvalidToken, Service, SubscribeTerms, channel_name
from snorky.services.requests import Request, RPCError

__all__ = ["demand_text", "expires_in_s", "granted"]


@asynccontextmanager
async def granted(
    service: Service, request: Request, channel: Any, token: Any, *, is_new: bool = True
) -> AsyncIterator[Grant | None]:
    """Verify a token, yield what it grants, and bind it to the subscription that the block makes.

    token: None = without one; yields None. A frontend sends its terms instead. If the block fails, a token that the
    subscription had before remains. is_new: the block subscribes; False: it only looks at the subscription. Raises
    RPCError: the token is not accepted, or has ended meanwhile; a new subscription is ended then.
    """
    if token is None:
        yield None
        return
    auth, connection = service.cluster.auth, request.connection
    if isinstance(token, SubscribeTerms) and not token.operations:  # it permits nothing: nothing can end it
        yield auth.grants.of_terms(connection, service.name, channel_name(channel), token)
        return
    try:
        if isinstance(token, SubscribeTerms):
            grant = auth.grants.enter_terms(connection, service.name, channel_name(channel), token)
        else:
            grant = await auth.grant(connection, service.name, channel_name(channel), demand_text(token))
    except InvalidToken as error:
        raise _refusal(error) from None
    try:
        yield grant
    except BaseException:
        auth.grants.leave(grant)
        raise
    try:
        auth.grants.start(grant, lambda code, reason: service.end_subscription(connection, channel, code, reason))
    except InvalidToken as error:  # it expired or was revoked while the block subscribed
        if is_new:
            service.cut_subscription(connection, channel)
        raise _refusal(error) from None


def expires_in_s(service: Service, grant: Grant) -> int | None:
    """Return the seconds until a token expires, for replies; None = never."""
    if grant.token.expires_at_s == math.inf:
        return None
    return max(0, int(grant.token.expires_at_s - service.cluster.auth.now_s))


def demand_text(token: Any) -> str:
    """Return a token that is a text. Raises RPCError."""
    if not isinstance(token, str):
        raise RPCError("Invalid params", "invalid_params")
    return token


def _refusal(error: InvalidToken) -> RPCError:
    if error.reason == "expired":
        return RPCError("Subscription token expired", "token_expired")
    return RPCError(str(error), error.code)
