"""LogQueue: log lines queued for a stream whose reader may be slow or not read at all.

Rules:
- `put` never waits: a separate thread writes. If the reader of stderr stops (a pipe buffers 64 KiB, or 4), log lines
  are lost, but the node continues.
- At most QUEUE_MAX_BYTES are queued. Further lines are dropped and counted; the next line written reports how many.
- The thread ends with the process. `flush` gives it a limited time to write the queued lines.
"""

import json
import os
import select
import threading
from collections import deque
from typing import Final

__all__ = ["QUEUE_MAX_BYTES", "LogQueue"]

QUEUE_MAX_BYTES: Final = 1 << 20  # some 5,000 lines
PIECE_MAX_BYTES: Final = 4096  # per write to a pipe: an ending process seldom interrupts a short write


class LogQueue:
    """Writes lines to a file descriptor in the background. max_bytes: of queued lines."""

    def __init__(self, descriptor: int, max_bytes: int = QUEUE_MAX_BYTES) -> None:
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0  # including the line that is being written
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.dropped = 0  # lines, in total
        self._reported = 0  # of those, the number already reported by a line

    def put(self, line: str) -> None:
        """Queue one line, without its line end; never waits for the reader."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._waiting_bytes + len(data) > self._max_bytes:
                self.dropped += 1
                return
            self._lines.append(data)
            self._waiting_bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="logs", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait up to timeout_s until everything is written. Returns True if it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting_bytes == 0, timeout_s)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._lines))
                data = self._lines.popleft()
                size, dropped = len(data), self.dropped - self._reported
                self._reported = self.dropped
            if dropped:
                event = {"event": "log lines dropped: stderr is not read", "lines": dropped, "level": "warning"}
                data = json.dumps(event).encode() + b"\n" + data
            is_written = self._write(data)
            with self._changed:
                self._waiting_bytes -= size
                if not is_written:
                    self.dropped += 1
                self._changed.notify_all()

    def _write(self, data: bytes) -> bool:
        """Write all of it; waits for the reader. False: the stream is broken (its reader has gone)."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view[:PIECE_MAX_BYTES]) :]
            except BlockingIOError:  # another process that shares the stream made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True
