"""TokenCalls: calls a program's token functions, each in a task and with a time limit."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from snorky.client.realtime.channel_token import TokenDone, check_channel_token

__all__ = ["SubscriptionToken", "TokenCalls"]

TokenFunction: TypeAlias = Callable[[Any], str | Awaitable[str | None] | None]
SubscriptionToken: TypeAlias = str | TokenFunction


class TokenCalls:
    """The running calls of token functions. timeout_s: for each call."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, function: TokenFunction, channel: Any, done: TokenDone) -> Callable[[], None]:
        """Call a function with a channel; `done` is called later, once: with its result, or with the error.

        Errors: those of the function; TimeoutError; UnusableToken. Returns a function that cancels the call.
        """
        loop = asyncio.get_running_loop()
        is_settled = False

        def settle(text: str | None, error: Exception | None) -> None:
            nonlocal is_settled
            if not is_settled:
                is_settled = True
                timer.cancel()
                done(text, error)

        def cancel() -> None:
            nonlocal is_settled
            is_settled = True
            timer.cancel()
            task.cancel()

        def expire() -> None:
            settle(None, TimeoutError(f"no result after {self._timeout_s:g} s"))
            task.cancel()  # a function that ignores it does not keep others waiting

        async def run() -> None:
            try:
                given: Any = function(channel)
                token = await given if isinstance(given, Awaitable) else given
                text = None if token is None else check_channel_token(token)
            except Exception as error:  # the program's function may raise anything
                settle(None, error)
            else:
                settle(text, None)

        timer = loop.call_later(self._timeout_s, expire)
        task = loop.create_task(run(), name="snorky-token")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return cancel

    async def aclose(self) -> None:
        """Wait for the ends of all calls, at most `timeout_s`. The session has cancelled them."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=self._timeout_s)
