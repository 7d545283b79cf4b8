"""While a client moves, a channel without positions comes over two connections: which messages are the same?

Both bring the same order, the new one from some point on. Its first message is looked for among those of the old one,
the latest first; from there on the two are compared one by one, until they differ. Contents stand in for positions, so
what is equal may be told apart wrongly, and then rather as new than as a repetition.
"""

import json
from collections import deque
from typing import Any, Final

__all__ = ["Overlap"]

SEEN_MAX: Final = 1_000  # of one channel, in the moment of a move; beyond, messages may repeat


class Overlap:
    """Compares the two connections' messages of one channel."""

    def __init__(self) -> None:
        self._seen: deque[str] = deque(maxlen=SEEN_MAX)
        self._rest: deque[str] | None = None  # what the new connection has still to repeat

    def note(self, data: Any) -> None:
        """Remember a message of the old connection."""
        self._seen.append(_text(data))

    def is_repetition(self, data: Any) -> bool:
        """Judge the next message of the new connection."""
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
