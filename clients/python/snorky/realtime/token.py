"""TokenSource: the token that a client shows, and when it needs another one.

A token's end is read from itself (a JWT's `exp`, unverified: only to know when to ask for the next one). Without that,
a token is used until the gateway refuses it.
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

REFRESH_AT: Final = 0.8  # of its lifetime: time for some attempts


# What may stand in a header (RFC 6750 2.1) and in a subprotocol (RFC 7230 3.2.6) alike, and what in a header only.
_ANYWHERE = re.compile(r"[A-Za-z0-9._~+-]+").fullmatch
_IN_HEADER = re.compile(r"[A-Za-z0-9._~+/-]+=*").fullmatch


def check_token(token: object, *, is_subprotocol: bool) -> str:
    """Give a token back that can go into a handshake. Raises ValueError, whose text does not repeat it."""
    if not isinstance(token, str) or (_ANYWHERE if is_subprotocol else _IN_HEADER)(token) is None:
        raise ValueError("token: a text of letters, digits and . _ ~ + - is expected")
    return token


def lifetime_s(token: str, *, now_s: float) -> float | None:
    """Read how long a token is good from its issue, or from now, on; None = it does not say."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        begins_s = claims.get("iat", now_s)  # by the issuer's clock, whatever ours says
        left_s = float(claims["exp"]) - float(begins_s)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, binascii.Error):
        return None
    return left_s if left_s > 0 else None


class TokenSource:
    """Gives tokens. token: one for good, or a function or coroutine function that gives a fresh one.

    is_subprotocol: it goes there in the handshake. Raises ValueError: it cannot.
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
        """True if another token can be had."""
        return callable(self._token)

    async def get(self, *, is_new: bool) -> str | None:
        """Give the token to connect with. is_new: the last one is no good. Raises what the function raises."""
        if not callable(self._token):
            return self._token
        if is_new or self._last is None or self._is_old(self._last):
            given: Any = self._token()
            token = await given if isinstance(given, Awaitable) else given
            self._last = check_token(token, is_subprotocol=self._is_subprotocol)
            self._given_at_s = self._wall_clock_s()
        return self._last

    def refresh_after_s(self) -> float | None:
        """Tell in how many seconds the present token should be replaced; None = never, or nobody knows."""
        if not self.is_renewable or self._last is None:
            return None
        lifetime = lifetime_s(self._last, now_s=self._given_at_s)
        if lifetime is None:
            return None
        return max(0.0, self._given_at_s + REFRESH_AT * lifetime - self._wall_clock_s())

    def _is_old(self, token: str) -> bool:
        return self.refresh_after_s() == 0.0
