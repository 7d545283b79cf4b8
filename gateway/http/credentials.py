"""Who makes a request, before it becomes a connection: by a token that it brings, or by a hook of one's own.

A token comes as `Authorization: Bearer TOKEN`, or, from browsers, which cannot set that, as the WebSocket
subprotocol `bearer.TOKEN` beside the encoding's. Never in the URL: those are kept in logs and histories.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from gateway.authenticator import Authenticator
from gateway.errors import BrokerUnavailable, InvalidToken
from gateway.http.handshake import HandshakeRefused, Headers
from gateway.sessions import Session

__all__ = ["Identify", "session_of", "token_of"]

# Say who makes a request, by a session cookie for example; None = it is not known
Identify = Callable[[web.Request], Awaitable[str | int | None]]

_SUBPROTOCOL: Final = "bearer."
_log = structlog.get_logger("snorky.auth")


def token_of(headers: Headers) -> str | None:
    """Find the token of a request. Raises HandshakeRefused: it brings several."""
    found = []
    for value in headers.getall("Authorization", ()):
        scheme, _, rest = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            found.append(rest.strip())
    for name in ",".join(headers.getall("Sec-WebSocket-Protocol", ())).split(","):
        if name.strip().startswith(_SUBPROTOCOL):
            found.append(name.strip().removeprefix(_SUBPROTOCOL))
    if len(found) > 1:  # a proxy in front may have looked at the other
        raise HandshakeRefused(400, "duplicate_token", "Bring one token, not several")
    return found[0] if found else None


async def session_of(request: web.Request, auth: Authenticator, identify: Identify | None) -> Session | None:
    """Find out who makes a request; None = nobody said. `bind` or `leave` is owed for a session.

    Raises InvalidToken: a token is bad, which the peer is to be told by a close code, for browsers do not see
    the status of a handshake; HandshakeRefused: it cannot be told now, or the hook failed.
    """
    token = token_of(request.headers) if auth.takes_tokens else None
    try:
        if token is not None:
            return await auth.enter(token)
        if identify is not None:
            return await auth.enter_as(lambda: identify(request))
    except InvalidToken:
        raise
    except BrokerUnavailable:
        raise HandshakeRefused(503, "authentication", "Authentication is temporarily unavailable") from None
    except Exception as error:  # a hook is the operator's own code: whatever it raises, nobody gets in
        auth.count_refused("hook_failed")
        _log.error("identify failed", error=type(error).__name__)  # its text may quote a cookie
        raise HandshakeRefused(503, "authentication", "Authentication is temporarily unavailable") from None
    return None
