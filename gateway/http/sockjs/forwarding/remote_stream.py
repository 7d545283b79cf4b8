"""RemoteStream: sends the frames of a local session to another node, which writes them to a response."""

import asyncio
from collections.abc import Callable

from snorky.gateway.http.serving.response_stream import HIGH_WATER_BYTES
from snorky.gateway.http.sockjs.session import Session

__all__ = ["RemoteStream"]


def _nothing() -> None:
    """Do nothing: the default callback."""


class RemoteStream:
    """tell: sends ("frame", NUMBER, TEXT) and ("end", NUMBER) to that node. heard_s: time of its last sign of life."""

    def __init__(self, session: Session, tell: Callable[..., object], is_streaming: bool) -> None:
        self.session = session
        self.is_streaming = is_streaming
        self.is_ended = False
        self.on_drained: Callable[[], None] = _nothing
        self.on_lost: Callable[[], None] = _nothing
        self.heard_s = asyncio.get_running_loop().time()
        self._tell = tell
        self._number = 0
        self._bytes = 0  # sent and not yet acknowledged

    def send(self, frame: bytes) -> None:
        """Send one frame."""
        if not self.is_ended:
            self._bytes += len(frame)
            self._tell("frame", self._next(), frame.decode())

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
