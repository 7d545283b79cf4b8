"""During a move two connections deliver the same channel: find the new one's messages that the old one delivered.

Used for channels without positions. Both connections have the same order; the new one starts at some point in it. Its
first message is searched among those of the old connection, from the latest back; then both are compared one by one
until they differ. Equal messages can be confused; a message is then more likely to be delivered twice than lost.
"""

import json
from collections import deque
from typing import Any, Final

__all__ = ["Overlap"]

SEEN_MAX: Final = 1_000  # messages per channel during a move; beyond it, some may be delivered twice


class Overlap:
    """Compares one channel's messages from two connections."""

    def __init__(self) -> None:
        self._seen: deque[str] = deque(maxlen=SEEN_MAX)
        self._rest: deque[str] | None = None  # messages that the new connection may still repeat

    def note(self, data: Any) -> None:
        """Record a message of the old connection."""
        self._seen.append(_text(data))

    def is_repetition(self, data: Any) -> bool:
        """Return whether the old connection delivered the new one's next message already."""
        text = _text(data)
        if self._rest is None:
            seen = list(self._seen)
            start = len(seen) - 1 - seen[::-1].index(text) if text in seen else len(seen)
            self._rest = deque(seen[start:])
        if self._rest and self._rest[0] == text:
            self._rest.popleft()
            return True
        self._rest.clear()
        return False


def _text(data: Any) -> str:
    return json.dumps(data, sort_keys=True)
