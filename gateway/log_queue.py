"""LogQueue: lines on their way to a stream that may be read slowly, or not at all.

Rules:
- `put` never waits: a thread of its own writes. A reader of stderr that stops (a pipe holds 64 KiB, or 4) costs log
  lines and not the node.
- At most QUEUE_MAX_BYTES wait. Lines beyond that are dropped and counted; the next line that goes out says how many.
- The thread ends with the process. `flush` gives it a bounded time to write what waits.
"""

import json
import os
import select
import threading
from collections import deque
from typing import Final

__all__ = ["QUEUE_MAX_BYTES", "LogQueue"]

QUEUE_MAX_BYTES: Final = 1 << 20  # some 5,000 lines
PIECE_MAX_BYTES: Final = 4096  # one write to a pipe: a process that ends is seldom in the middle of a long one


class LogQueue:
    """Writes lines to a descriptor in the background. max_bytes: of lines that wait."""

    def __init__(self, descriptor: int, max_bytes: int = QUEUE_MAX_BYTES) -> None:
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0  # also of the line that is being written
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.dropped = 0  # lines, in all
        self._told = 0  # of those, by a line

    def put(self, line: str) -> None:
        """Queue one line, without its end; never waits for the reader."""
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
        """Wait until everything is written, but not longer than that. Returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting_bytes == 0, timeout_s)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._lines))
                data = self._lines.popleft()
                size, dropped = len(data), self.dropped - self._told
                self._told = self.dropped
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
        """Write all of it; waits for the reader. False: the stream takes nothing any more (its reader has gone)."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view[:PIECE_MAX_BYTES]) :]
            except BlockingIOError:  # somebody who shares it made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True
