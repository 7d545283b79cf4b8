"""ChannelToken: where the subscription tokens of one topic come from, and how often that failed. Pure."""

import logging
from collections.abc import Callable
from typing import Any, Final

from snorky.client.clock import Backoff
from snorky.client.realtime.token import check_token

__all__ = ["RETRY_MIN_S", "TOKEN_MAX_BYTES", "ChannelToken", "TokenDone", "UnusableToken", "check_channel_token"]

TOKEN_MAX_BYTES: Final = 8192  # more is accepted nowhere: see snorky.client.tokens
RETRY_MIN_S: Final = 1.0  # between two calls of a token function for one subscription
RELIABLE_S: Final = 5.0  # a shorter lifetime does not reset the backoff

TokenDone = Callable[[str | None, Exception | None], None]  # the token, None = the client may not have it; or the error

_log = logging.getLogger("snorky.realtime")


class UnusableToken(ValueError):
    """A program's function returned something that is no token."""


def check_channel_token(token: object) -> str:
    """Return a token that can be sent. Raises UnusableToken, whose text does not contain the token."""
    try:
        text = check_token(token, is_subprotocol=False)
    except ValueError as error:
        raise UnusableToken(str(error)) from None
    if len(text) > TOKEN_MAX_BYTES:
        raise UnusableToken(f"token: more than {TOKEN_MAX_BYTES} bytes")
    return text


class ChannelToken:
    """Where the tokens of one topic come from. text: a fixed token; without it `ask` is called for each.

    ask(done): calls `done` later, once; returns a function that cancels it.
    """

    def __init__(
        self,
        text: str | None = None,
        *,
        ask: Callable[[TokenDone], Callable[[], None]] | None = None,
        backoff: Backoff,
    ) -> None:
        self.text = text
        self.ask = ask
        self._backoff = backoff
        self._last_failure = ""

    @property
    def is_renewable(self) -> bool:
        """True if a function provides new tokens."""
        return self.ask is not None

    def succeed(self, lifetime_s: float) -> None:
        """Record that the gateway has accepted a token."""
        if lifetime_s >= RELIABLE_S:
            self._backoff.reset()
            self._last_failure = ""

    def fail(self, channel: Any, failure: str) -> float:
        """Record and log a failure; return the delay before the next attempt."""
        level = logging.DEBUG if failure == self._last_failure else logging.WARNING
        self._last_failure = failure
        _log.log(level, "Subscription token for %r: %s", channel, failure)
        return RETRY_MIN_S + self._backoff.next_s()
