"""Outlet: frames on their way into one HTTP response, from a session here or on another node.

Rules:
- Who fills it never waits; who writes the response takes all that is there, so that a tick's frames are one write.
- It ends once: by `end` (what is in it goes out first) or `lose` (nobody reads it any more).
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

__all__ = ["HIGH_WATER_BYTES", "Drain", "Outlet"]

HIGH_WATER_BYTES = 65_536  # waiting in one; beyond it the connection holds what comes


class Drain(Protocol):
    """Where a session's frames go to."""

    is_streaming: bool
    on_drained: Callable[[], None]
    on_lost: Callable[[], None]

    def send(self, frame: bytes) -> None:
        """Take one frame; never waits."""

    def end(self) -> None:
        """Take no more: the response ends behind what is there."""

    def buffered_bytes(self) -> int:
        """Bytes of frames that are not written yet."""

    def is_gone(self) -> bool:
        """True if nobody reads it any more, as far as can be seen."""


def _nothing() -> None:
    """Nobody is to be told."""


class Outlet:
    """Frames of one response. is_gone: asks the response's transport. on_drained, on_lost: told who fills it."""

    def __init__(self, *, is_streaming: bool, is_gone: Callable[[], bool]) -> None:
        self.is_streaming = is_streaming
        self.is_gone = is_gone
        self.on_drained: Callable[[], None] = _nothing
        self.on_lost: Callable[[], None] = _nothing
        self.on_written: Callable[[int], None] | None = None
        self._frames: list[bytes] = []
        self._bytes = 0
        self._is_ended = False
        self._woken = asyncio.Event()

    def send(self, frame: bytes) -> None:
        """Take one frame."""
        if not self._is_ended:
            self._frames.append(frame)
            self._bytes += len(frame)
            self._woken.set()

    def end(self) -> None:
        """End behind what is there."""
        self._is_ended = True
        self._woken.set()

    def lose(self) -> None:
        """Know that nobody reads any more; tells who fills it, unless it has ended."""
        was_ended, self._is_ended = self._is_ended, True
        self._frames.clear()
        self._woken.set()
        if not was_ended:
            self.on_lost()

    def buffered_bytes(self) -> int:
        """Bytes taken and not yet written."""
        return self._bytes

    async def take(self) -> list[bytes]:
        """Wait for frames, and take them; empty at the end. `wrote` is owed."""
        while not self._frames and not self._is_ended:
            self._woken.clear()
            await self._woken.wait()
        frames, self._frames = self._frames, []
        return frames

    def wrote(self, frames: list[bytes]) -> None:
        """Know that the response has taken them."""
        size = sum(map(len, frames))
        was_high = self._bytes > HIGH_WATER_BYTES
        self._bytes -= size
        if self.on_written is not None:
            self.on_written(size)
        if was_high and self._bytes <= HIGH_WATER_BYTES:
            self.on_drained()
