"""TokenSource: the token that authenticates a client, and when it must be replaced.

A token's expiry is read from the token (a JWT's `exp`, without verification: only to know when to get the next one).
Without `exp` a token is used until the gateway refuses it.
"""

import base64
import binascii
import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

__all__ = ["Token", "TokenSource", "check_token", "lifetime_s"]

Token: TypeAlias = str | Callable[[], str | Awaitable[str]]

REFRESH_AT: Final = 0.8  # fraction of the lifetime; leaves time for some attempts


# Characters allowed in a header (RFC 6750 2.1) and a subprotocol (RFC 7230 3.2.6), and those allowed in a header only.
_ANYWHERE = re.compile(r"[A-Za-z0-9._~+-]+").fullmatch
_IN_HEADER = re.compile(r"[A-Za-z0-9._~+/-]+=*").fullmatch


def check_token(token: object, *, is_subprotocol: bool) -> str:
    """Return a token if a handshake can carry it. Raises ValueError, whose text does not contain the token."""
    if not isinstance(token, str) or (_ANYWHERE if is_subprotocol else _IN_HEADER)(token) is None:
        raise ValueError("token: a text of letters, digits and . _ ~ + - is expected")
    return token


def lifetime_s(token: str, *, now_s: float) -> float | None:
    """Return how long a token is valid from its issue, or without `iat` from now on; None = unknown."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        begins_s = claims.get("iat", now_s)  # both by the issuer's clock, which may differ from ours
        left_s = float(claims["exp"]) - float(begins_s)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, binascii.Error):
        return None
    return left_s if left_s > 0 else None


class TokenSource:
    """Provides tokens. token: a fixed one, or a (coroutine) function that returns a new one.

    is_subprotocol: the handshake carries it as a subprotocol. Raises ValueError: the token is not valid there.
    """

    def __init__(
        self, token: Token | None, *, is_subprotocol: bool = False, wall_clock_s: Callable[[], float] = time.time
    ) -> None:
        self._token = token if token is None or callable(token) else check_token(token, is_subprotocol=is_subprotocol)
        self._is_subprotocol = is_subprotocol
        self._wall_clock_s = wall_clock_s
        self._last: str | None = None

    @property
    def is_renewable(self) -> bool:
        """True if a function provides new tokens."""
        return callable(self._token)

    async def get(self, *, is_new: bool) -> str | None:
        """Return the token to connect with. is_new: get a new one. Raises ValueError, and the function's errors."""
        if not callable(self._token):
            return self._token
        if is_new or self._last is None or self._is_old(self._last):
            given: Any = self._token()
            token = await given if isinstance(given, Awaitable) else given
            self._last = check_token(token, is_subprotocol=self._is_subprotocol)
            self._given_at_s = self._wall_clock_s()
        return self._last

    def refresh_after_s(self) -> float | None:
        """Return in how many seconds to replace the present token; None = never, or unknown."""
        if not self.is_renewable or self._last is None:
            return None
        lifetime = lifetime_s(self._last, now_s=self._given_at_s)
        if lifetime is None:
            return None
        return max(0.0, self._given_at_s + REFRESH_AT * lifetime - self._wall_clock_s())

    def _is_old(self, token: str) -> bool:
        return self.refresh_after_s() == 0.0
