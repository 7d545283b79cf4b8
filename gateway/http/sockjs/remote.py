"""RemoteOutlet: frames of a session of this node on their way into a response of another node."""

import asyncio
from collections.abc import Callable

from gateway.http.sockjs.outlet import HIGH_WATER_BYTES
from gateway.http.sockjs.session import Session

__all__ = ["RemoteOutlet"]


def _nothing() -> None:
    """Nobody is to be told yet."""


class RemoteOutlet:
    """tell: sends ("frame", NUMBER, TEXT) and ("end", NUMBER) to the other node. heard_s: when it was last there."""

    def __init__(self, session: Session, tell: Callable[..., object], is_streaming: bool) -> None:
        self.session = session
        self.is_streaming = is_streaming
        self.is_ended = False
        self.on_drained: Callable[[], None] = _nothing
        self.on_lost: Callable[[], None] = _nothing
        self.heard_s = asyncio.get_running_loop().time()
        self._tell = tell
        self._number = 0
        self._bytes = 0  # told and not yet acknowledged

    def send(self, frame: bytes) -> None:
        """Send one frame on."""
        if not self.is_ended:
            self._bytes += len(frame)
            self._tell("frame", self._next(), frame.decode())

    def end(self) -> None:
        """Let the response end."""
        if not self.is_ended:
            self.is_ended = True
            self._tell("end", self._next())

    def buffered_bytes(self) -> int:
        """Bytes that the other node's response has not taken yet."""
        return self._bytes

    def is_gone(self) -> bool:
        """Others look after that."""
        return False

    def on_ack(self, size: int) -> None:
        """Know that the response has taken bytes of frames."""
        was_high = self._bytes > HIGH_WATER_BYTES
        self._bytes -= size
        if was_high and self._bytes <= HIGH_WATER_BYTES:
            self.on_drained()

    def _next(self) -> int:
        number, self._number = self._number, self._number + 1
        return number
