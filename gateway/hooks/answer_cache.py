"""AnswerCache: answers of the backend, for as long as the settings say; bounded in entries and bytes.

The oldest answers are removed first. Failures are never stored.
"""

from collections.abc import Callable
from typing import Final

from snorky.gateway.hooks.answers import Verdict

__all__ = ["AnswerCache"]

ENTRIES_MAX: Final = 10_000
BYTES_MAX: Final = 16_777_216
ENTRY_BYTES: Final = 1_024  # of Python objects around an answer, measured with tracemalloc: 700
FACTOR: Final = 4  # decoded claims take up to so many bytes for one of the JSON text


class AnswerCache:
    """One per hook. clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[bytes, tuple[float, int, Verdict]] = {}  # until when, bytes; oldest first
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Verdict | None:
        """Return the stored answer to a question; None = there is none, or it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._clock() >= entry[0]:
            self._remove(key)
            return None
        return entry[2]

    def put(self, key: bytes, verdict: Verdict, *, answer_bytes: int, for_s: float) -> None:
        """Store an answer. answer_bytes: of its JSON text."""
        if for_s <= 0:
            return
        self._remove(key)
        size = ENTRY_BYTES + FACTOR * answer_bytes
        while self._entries and (len(self._entries) >= ENTRIES_MAX or self._bytes + size > BYTES_MAX):
            self._remove(next(iter(self._entries)))
        self._entries[key] = self._clock() + for_s, size, verdict
        self._bytes += size

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[1]
