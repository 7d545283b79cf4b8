"""A client's transport without a network: it records what the node writes."""

from collections.abc import Callable

from snorky.gateway.protocol.codec import Encoding
from snorky.gateway.protocol.ws_frames import TEXT, Dialect

__all__ = ["JSON", "FakeTransport"]

# no framing around a message except its terminator
JSON = Dialect("json", Encoding.JSON, TEXT, lambda message: message + b"\n")


class FakeTransport:
    """A transport that records writes and closes. on_write: called before every write."""

    transport_name = "websocket"

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closes: list[tuple[int, str]] = []
        self.is_reading = True
        self.reading_changes: list[bool] = []
        self.buffered = 0
        self.on_write: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        self.on_write()
        self.writes.append(data)

    def buffered_bytes(self) -> int:
        return self.buffered

    def pause_reading(self) -> None:
        self.is_reading = False
        self.reading_changes.append(False)

    def resume_reading(self) -> None:
        self.is_reading = True
        self.reading_changes.append(True)

    def close(self, code: int, reason: str) -> None:
        self.closes.append((int(code), reason))
