"""Authentication of a request before it becomes a connection: by its token, or by the operator's hook.

A token is sent as `Authorization: Bearer TOKEN` or, by browsers, which cannot set that header, as the WebSocket
subprotocol `bearer.TOKEN` in addition to the encoding's. Never in the URL: URLs are kept in logs and browser histories.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.sessions import Session
from snorky.gateway.errors import BrokerUnavailable, InvalidToken
from snorky.gateway.http.websocket.handshake import HandshakeRefused, Headers

__all__ = ["Identify", "session_of", "token_of"]

# Returns the identity of the client that sends a request, e.g. from a session cookie; None = unknown
Identify = Callable[[web.Request], Awaitable[str | int | None]]

_SUBPROTOCOL: Final = "bearer."
_log = structlog.get_logger("snorky.auth")


def token_of(headers: Headers) -> str | None:
    """Return the token of a request. Raises HandshakeRefused: it has several."""
    found = []
    for value in headers.getall("Authorization", ()):
        scheme, _, rest = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            found.append(rest.strip())
    for name in ",".join(headers.getall("Sec-WebSocket-Protocol", ())).split(","):
        if name.strip().startswith(_SUBPROTOCOL):
            found.append(name.strip().removeprefix(_SUBPROTOCOL))
    if len(found) > 1:  # a proxy in front may have checked the other one
        raise HandshakeRefused(400, "duplicate_token", "Bring one token, not several")
    return found[0] if found else None


async def session_of(request: web.Request, auth: Authenticator, identify: Identify | None) -> Session | None:
    """Authenticate a request; None = no token, and no identity from the hook. The caller must `bind` or `leave` it.

    Raises InvalidToken: the token is not accepted; report it by a close code, because browsers do not see
    the status of a handshake. HandshakeRefused: authentication is unavailable now, or the hook failed.
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
    except Exception as error:  # a hook is the operator's code: whatever it raises, access is refused
        auth.count_refused("hook_failed")
        _log.error("identify failed", error=type(error).__name__)  # its text may quote a cookie
        raise HandshakeRefused(503, "authentication", "Authentication is temporarily unavailable") from None
    return None
