"""Inbox: processes one connection's messages in order while one of them is being awaited.

Most messages are answered at once and need no inbox. When a service returns an awaitable, the
connection gets one: a task that awaits it, then processes the messages received meanwhile, then ends. So a
`publish` sent after a `subscribe` finds the subscription confirmed, and clients need not wait for replies.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.pace import Pace
from snorky.gateway.protocol.codec import Envelope

__all__ = ["Dispatch", "Inbox"]

MAX_MESSAGES: Final = 64  # above it the socket is not read any more, and TCP makes the client wait
MAX_BYTES: Final = 262_144  # likewise; of the messages as received
RESUME_MESSAGES: Final = 16

Dispatch = Callable[[Connection, Envelope], Awaitable[None] | None]


class Inbox:
    """Processes a connection's messages one after another.

    first: a message that is being awaited already; None = there is none, and the next one begins when `pace` permits.
    dispatch: answers one message; returns an awaitable if that takes time. on_done: called when no message is left.
    """

    __slots__ = ("_bytes", "_connection", "_dispatch", "_envelopes", "_is_paused", "_on_done", "task")

    def __init__(
        self,
        connection: Connection,
        dispatch: Dispatch,
        first: Awaitable[None] | None,
        on_done: Callable[[Connection], None],
        pace: Pace,
    ) -> None:
        self._connection = connection
        self._dispatch = dispatch
        self._envelopes: deque[tuple[Envelope, int]] = deque()  # with the size received
        self._bytes = 0
        self._is_paused = False
        self._on_done = on_done
        self.task: asyncio.Task[None] | None = asyncio.get_running_loop().create_task(self._run(first, pace))

    def append(self, envelope: Envelope, size: int) -> None:
        """Queue one message; stop reading the connection while too many are queued. size: bytes as received."""
        self._envelopes.append((envelope, size))
        self._bytes += size
        if (len(self._envelopes) >= MAX_MESSAGES or self._bytes >= MAX_BYTES) and not self._is_paused:
            self._is_paused = True
            self._connection.pause_reading()

    def cancel(self) -> None:
        """Cancel the awaited message, and drop the queued ones."""
        # Not at once: a task that is cancelled before its first step runs no `finally`, so on_done is never called.
        if self.task is not None:
            asyncio.get_running_loop().call_soon(self.task.cancel)

    def release(self) -> None:
        """Forget the task, which ends: its traceback refers to this object, so only the collector could free them."""
        self.task = None

    async def _run(self, first: Awaitable[None] | None, pace: Pace) -> None:
        try:
            await (pace.turn() if first is None else first)
            while self._envelopes and not self._connection.is_closed:
                envelope, size = self._envelopes.popleft()
                self._bytes -= size
                pending = self._dispatch(self._connection, envelope)
                if self._is_paused and len(self._envelopes) <= RESUME_MESSAGES and self._bytes < MAX_BYTES:
                    self._is_paused = False
                    self._connection.resume_reading()
                if pending is not None:
                    await pending
        finally:
            self._on_done(self._connection)
