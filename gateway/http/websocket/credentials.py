"""Authentication of a request before it becomes a connection: by its token, or by the operator's hooks.

The token or the Python hook comes first; then the backend is asked by `[hooks.connect]`, if it is configured.

A token is sent as `Authorization: Bearer TOKEN` or, by browsers, which cannot set that header, as the WebSocket
subprotocol `bearer.TOKEN` in addition to the encoding's. Never in the URL: URLs are kept in logs and browser histories.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.sessions import Session
from snorky.gateway.errors import BrokerUnavailable, HookRefused, HookUnavailable, InvalidToken
from snorky.gateway.http.websocket.handshake import HandshakeRefused, Headers
from snorky.gateway.node import Node

__all__ = ["Asked", "Identify", "admit", "session_of", "token_of"]

# Returns the identity of the client that sends a request, e.g. from a session cookie; None = unknown
Identify = Callable[[web.Request], Awaitable[str | int | None]]
Asked = Callable[[], Awaitable[str | int | None]]  # the same, of one request

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


async def admit(
    headers: Headers, node: Node, identify: Asked | None, *, address: str, token: str | None = None
) -> Session | None:
    """Authenticate a request as `session_of`, and ask the backend whether it may connect. address: the client's.

    An anonymous client may get its identity from the answer. Raises as `session_of`; HandshakeRefused: the backend
    refuses it, or gave no usable answer.
    """
    auth = node.auth
    session = await session_of(headers, auth, identify, token=token)
    try:
        answer = await auth.ask_to_connect(None if session is None else session.who, address)
        if answer is None or answer.identity is None:
            return session
        return await auth.enter_answer(answer)
    except BaseException as error:
        if session is not None:
            auth.leave(session)
        if isinstance(error, HookRefused):
            raise HandshakeRefused(403, "hook", "The application refuses this connection") from None
        if isinstance(error, HookUnavailable):
            if error.reason == "hook_busy":
                raise HandshakeRefused(503, "hook_busy", "Too many clients wait for the application") from None
            raise HandshakeRefused(503, "hook_failed", "The application cannot be asked for the moment") from None
        if isinstance(error, BrokerUnavailable):
            raise _unavailable() from None
        raise


async def session_of(
    headers: Headers, auth: Authenticator, identify: Asked | None, *, token: str | None = None
) -> Session | None:
    """Authenticate a request; None = no token, and no identity from the hook. The caller must `bind` or `leave` it.

    token: used instead of one in the headers.

    Raises InvalidToken: the token is not accepted; report it by a close code, because browsers do not see
    the status of a handshake. HandshakeRefused: authentication is unavailable now, or the hook failed.
    """
    if token is None and auth.takes_tokens:
        token = token_of(headers)
    try:
        if token is not None:
            return await auth.enter(token)
        if identify is not None:
            return await auth.enter_as(identify)
    except InvalidToken:
        raise
    except BrokerUnavailable:
        raise _unavailable() from None
    except Exception as error:  # a hook is the operator's code: whatever it raises, access is refused
        auth.count_refused("hook_failed")
        _log.error("identify failed", error=type(error).__name__)  # its text may quote a cookie
        raise _unavailable() from None
    return None


def _unavailable() -> HandshakeRefused:
    return HandshakeRefused(503, "authentication", "Authentication is temporarily unavailable")
