"""RemoteStream: sends the frames of a local session to another node, which writes them to a response."""

import asyncio
from collections.abc import Callable
from typing import Final

from snorky.gateway.http.serving.response_stream import HIGH_WATER_BYTES
from snorky.gateway.http.sockjs.session import Session

__all__ = ["PART_MAX_CHARS", "RemoteStream"]

PART_MAX_CHARS: Final = 131_072  # of a frame in one message; as JSON it is up to six times as long, and has a limit


def _nothing() -> None:
    """Do nothing: the default callback."""


class RemoteStream:
    """tell: sends ("part", NUMBER, TEXT), ("frame", NUMBER, TEXT) and ("end", NUMBER) to that node.

    asker: its id. heard_s: time of its last sign of life.
    """

    def __init__(self, session: Session, asker: str, tell: Callable[..., object], is_streaming: bool) -> None:
        self.session = session
        self.asker = asker
        self.is_streaming = is_streaming
        self.is_ended = False
        self.on_drained: Callable[[], None] = _nothing
        self.on_lost: Callable[[], None] = _nothing
        self.on_finished: Callable[[], None] | None = None
        self.heard_s = asyncio.get_running_loop().time()
        self.unheard = 0  # how often in a row Redis had no receiver of that node's channel
        self._tell = tell
        self._number = 0
        self._bytes = 0  # sent and not yet acknowledged

    def send(self, frame: bytes) -> None:
        """Send one frame, which may be all that was queued for a client, in parts."""
        if self.is_ended:
            return
        self._bytes += len(frame)
        text = frame.decode()
        *parts, last = [text[at : at + PART_MAX_CHARS] for at in range(0, len(text), PART_MAX_CHARS)]
        for part in parts:
            self._tell("part", self._next(), part)
        self._tell("frame", self._next(), last)

    def end(self) -> None:
        """End the response."""
        if not self.is_ended:
            self.is_ended = True
            self._tell("end", self._next())

    def buffered_bytes(self) -> int:
        """Return the number of bytes that the other node has not written yet."""
        return self._bytes

    def is_gone(self) -> bool:
        """Return False: SessionOwner notices when the other node has gone."""
        return False

    def on_ack(self, size: int) -> None:
        """Record that the response has written this many bytes."""
        was_high = self._bytes > HIGH_WATER_BYTES
        self._bytes -= size
        if was_high and self._bytes <= HIGH_WATER_BYTES:
            self.on_drained()

    def _next(self) -> int:
        number, self._number = self._number, self._number + 1
        return number
